%% The other end of a stock distribution connection, without a VM: it does the handshake
%% (erl_dist_protocol) with the capabilities that it is told to claim, sends the frames that it
%% is given, and shows those that the VM sends as they are. It is a hidden node; nothing comes
%% that the test has not asked for.
%%
%% It belongs to the calling process.
-module(chatter_raw_peer).

-export([connect/3, close/1, send/2, send/3, signal/1, node_name/1, pid/2, reference/2]).
-export([operation/1, updates/1]).

-export_type([raw/0, capability/0]).

-type raw() :: #{socket := gen_tcp:socket(), name := binary(), header := boolean()}.

-type capability() :: atom_cache | fragments | send_sender | exit_payload | unlink_id | spawn
                    | alias.

-define(TIMEOUT_MS, 10000).
-define(CREATION, 77).

%% What no VM does without, and monitors: extended references and pids, floats, funs, bit strings,
%% exports, UTF-8 atoms, maps, large creations, the handshake of OTP 23.
-define(MANDATORY, 16#1070FBC).

%% Connects to the node that listens on this port of the loopback interface.
-spec connect({inet:port_number(), Cookie :: string()}, string(), [capability()]) -> raw().
connect({Port, Cookie}, Name, Capabilities) ->
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {packet, 2}, {active, false}]),
    NameBin = list_to_binary(Name),
    Flags = lists:foldl(fun(C, Acc) -> Acc bor flag(C) end, ?MANDATORY, Capabilities),
    ok = gen_tcp:send(Socket, <<"N", Flags:64, ?CREATION:32, (byte_size(NameBin)):16,
                                NameBin/binary>>),
    {ok, <<"sok">>} = gen_tcp:recv(Socket, 0, ?TIMEOUT_MS),
    {ok, <<"N", _:64, Challenge:32, _/binary>>} = gen_tcp:recv(Socket, 0, ?TIMEOUT_MS),
    Mine = 12345,
    ok = gen_tcp:send(Socket, <<"r", Mine:32, (digest(Cookie, Challenge))/binary>>),
    Expected = digest(Cookie, Mine),
    {ok, <<"a", Expected:16/binary>>} = gen_tcp:recv(Socket, 0, ?TIMEOUT_MS),
    ok = inet:setopts(Socket, [{packet, 4}]),
    #{socket => Socket, name => NameBin,
      header => lists:member(atom_cache, Capabilities) orelse
          lists:member(fragments, Capabilities)}.

digest(Cookie, Challenge) -> erlang:md5([Cookie, integer_to_list(Challenge)]).

flag(atom_cache) -> 16#2000;
flag(send_sender) -> 16#80000;
flag(exit_payload) -> 16#400000;
flag(fragments) -> 16#800000;
flag(unlink_id) -> 16#2000000;
flag(spawn) -> 1 bsl 32;
flag(alias) -> 1 bsl 35.

-spec close(raw()) -> ok.
close(#{socket := Socket}) -> gen_tcp:close(Socket).

%% A signal to the VM: its control message, and the payload if it has one.
-spec send(raw(), tuple()) -> ok.
send(Raw, Control) -> put_frame(Raw, Control, <<>>).

-spec send(raw(), tuple(), term()) -> ok.
send(#{header := true} = Raw, Control, Payload) -> put_frame(Raw, Control, bare(Payload));
send(Raw, Control, Payload) -> put_frame(Raw, Control, term_to_binary(Payload)).

put_frame(#{socket := Socket, header := true}, Control, Payload) ->
    gen_tcp:send(Socket, [<<131, 68, 0>>, bare(Control), Payload]);
put_frame(#{socket := Socket}, Control, Payload) ->
    gen_tcp:send(Socket, [<<112>>, term_to_binary(Control), Payload]).

bare(Term) ->
    <<131, Bytes/binary>> = term_to_binary(Term),
    Bytes.

%% The frames of the next signal of the VM.
-spec signal(raw()) -> [binary()].
signal(#{socket := Socket} = Raw) ->
    case gen_tcp:recv(Socket, 0, ?TIMEOUT_MS) of
        {ok, <<>>} -> signal(Raw);
        {ok, <<131, 69, _:64, Left:64, _/binary>> = Frame} -> [Frame | parts(Socket, Left - 1)];
        {ok, Frame} -> [Frame];
        {error, Reason} -> error({no_signal, Reason})
    end.

parts(_Socket, 0) -> [];
parts(Socket, Left) ->
    {ok, <<131, 70, _:64, Left:64, _/binary>> = Frame} = gen_tcp:recv(Socket, 0, ?TIMEOUT_MS),
    [Frame | parts(Socket, Left - 1)].

-spec node_name(raw()) -> node().
node_name(#{name := Name}) -> binary_to_atom(Name).

%% A process of this end.
-spec pid(raw(), pos_integer()) -> pid().
pid(#{name := Name}, Id) ->
    binary_to_term(<<131, 88, 119, (byte_size(Name)), Name/binary, Id:32, 0:32, ?CREATION:32>>).

%% A reference of this end.
-spec reference(raw(), pos_integer()) -> reference().
reference(#{name := Name}, Id) ->
    binary_to_term(<<131, 90, 3:16, 119, (byte_size(Name)), Name/binary, ?CREATION:32,
                     Id:32, 0:32, 0:32>>).

%% The operation in the control message of a first or only frame.
-spec operation(binary()) -> byte().
operation(Frame) ->
    {_, <<104, _, 97, Operation, _/binary>>} = header(Frame),
    Operation.

%% Whether the frame puts atoms into the cache.
-spec updates(binary()) -> boolean().
updates(<<131, 70, _/binary>>) -> false;
updates(Frame) -> element(1, header(Frame)).

header(<<112, 131, Control/binary>>) -> {false, Control};
header(<<131, 68, Rest/binary>>) -> atoms(Rest);
header(<<131, 69, _:128, Rest/binary>>) -> atoms(Rest).

atoms(<<0, Control/binary>>) -> {false, Control};
atoms(<<N, Rest/binary>>) ->
    Len = N div 2 + 1,
    <<Flags:Len/binary, Refs/binary>> = Rest,
    Halves = lists:append([[Byte band 15, Byte bsr 4] || <<Byte>> <= Flags]),
    {Own, [Last | _]} = lists:split(N, Halves),
    New = [Half >= 8 || Half <- Own],
    {lists:member(true, New), texts(New, 1 + Last band 1, Refs)}.

texts([], _, Control) -> Control;
texts([false | New], LenLen, <<_, Rest/binary>>) -> texts(New, LenLen, Rest);
texts([true | New], LenLen, <<_, Rest/binary>>) ->
    <<Len:LenLen/unit:8, _:Len/binary, More/binary>> = Rest,
    texts(New, LenLen, More).
