%% SPDX-License-Identifier: Apache-2.0
%%
%% The epmd protocol as bytes: pure functions, no sockets and no processes.
%%
%% A request is a two-byte length followed by that many bytes, the first of which is the
%% tag. Answers have no length: they end with the connection, or where their fields say.
%%
%%     ALIVE2_REQ   120 port:16 type:8 protocol:8 high:16 low:16 len:16 name len:16 extra
%%     ALIVE2_X     118 result:8 creation:32     to registrants that speak version 6 or more
%%     ALIVE2_RESP  121 result:8 creation:16     to older ones
%%     PORT2_REQ    122 name
%%     PORT2_RESP   119 result:8 [port:16 type:8 protocol:8 high:16 low:16
%%                                len:16 name len:16 extra]
%%     NAMES_REQ    110                          answer: port:32, then lines
%%     DUMP_REQ     100                          answer: port:32, then lines, each with a NUL
%%     KILL_REQ     107                          answer: OK or NO
%%     STOP_REQ     115 name                     answer: STOPPED or NOEXIST
%%
%% What a decoder here accepts and refuses is what the epmd of OTP accepts and refuses; where
%% that is odd a comment says so.
-module(chatter_epmd_wire).

-export([request_length/1, decode_request/1]).
-export([alive2_request/1, port2_request/1, stop_request/1, simple_request/1]).
-export([alive2_response/2, alive2_refusal/1, port2_response/1, names_response/2, dump_response/3]).
-export([decode_alive2_response/1, decode_port2_response/1, decode_names_response/1]).
-export([encode_extra/1, decode_extra/1]).
-export([is_node_name/1, max_request_bytes/0, max_field_bytes/0]).
-export_type([entry/0, request/0, extra/0]).

-define(ALIVE2_REQ, 120).
-define(ALIVE2_RESP, 121).
-define(ALIVE2_X_RESP, 118).
-define(PORT2_REQ, 122).
-define(PORT2_RESP, 119).
-define(NAMES_REQ, 110).
-define(DUMP_REQ, 100).
-define(KILL_REQ, 107).
-define(STOP_REQ, 115).

%% Longest name and longest extra, bytes: 255 characters of four bytes.
-define(MAX_FIELD_BYTES, 1020).
%% Longest name, characters.
-define(MAX_NAME_CHARS, 255).
%% Longest request without its length field, bytes. epmd has a buffer of three fields, and
%% wants one byte of it free for a NUL.
-define(MAX_REQUEST_BYTES, 3057).
%% The code in a refusal. Nobody interprets it.
-define(REFUSED_CODE, 99).
%% From this version on registrants understand a 32-bit creation.
-define(VERSION_WIDE_CREATION, 6).

-type entry() :: #{name := binary(), port := 0..65535, node_type := byte(), protocol := byte(),
                   high := 0..65535, low := 0..65535, extra := binary()}.
-type request() :: {alive2, entry()} | {port2, binary()} | names | dump | kill | {stop, binary()}.
-type extra() :: #{chatter_port => inet:port_number(), creation => non_neg_integer()}.

%% @doc The longest request that is read, in bytes, its length field not counted.
-spec max_request_bytes() -> pos_integer().
max_request_bytes() -> ?MAX_REQUEST_BYTES.

%% @doc The longest name, and the longest extra, in bytes.
-spec max_field_bytes() -> pos_integer().
max_field_bytes() -> ?MAX_FIELD_BYTES.

%%% Requests ----------------------------------------------------------------------------

%% @doc How many bytes follow the length field at the head of what has arrived.
-spec request_length(binary()) -> {ok, pos_integer()} | more | {error, bad_length}.
request_length(<<Len:16, _/binary>>) when Len >= 1, Len =< ?MAX_REQUEST_BYTES -> {ok, Len};
request_length(<<_:16, _/binary>>) -> {error, bad_length};
request_length(_) -> more.

%% @doc Read a request, given without its length field. An error means: close, say nothing.
-spec decode_request(binary()) -> {ok, request()} | {error, atom()}.
decode_request(<<?ALIVE2_REQ, _/binary>> = Body) -> decode_alive2(Body);
decode_request(<<?PORT2_REQ, Name/binary>>) -> decode_port2(strip_nul(Name));
decode_request(<<?NAMES_REQ, _/binary>>) -> {ok, names};
decode_request(<<?DUMP_REQ, _/binary>>) -> {ok, dump};
decode_request(<<?KILL_REQ, _/binary>>) -> {ok, kill};
decode_request(<<?STOP_REQ>>) -> {error, short_request};
decode_request(<<?STOP_REQ, Name/binary>>) -> {ok, {stop, c_string(Name)}};
decode_request(_) -> {error, unknown_request}.

%% Bytes after the extra are ignored, and so is a name of no bytes accepted, as long as the
%% request has more than the 13 bytes of its fixed fields.
decode_alive2(<<?ALIVE2_REQ, Port:16, Type, Protocol, High:16, Low:16, NLen:16, Name:NLen/binary,
                ELen:16, Extra:ELen/binary, _/binary>> = Body) when byte_size(Body) > 13 ->
    case has_nul(Name) of
        true -> {error, nul_in_name};
        false -> {ok, {alive2, #{name => Name, port => Port, node_type => Type,
                                 protocol => Protocol, high => High, low => Low,
                                 extra => Extra}}}
    end;
decode_alive2(_) -> {error, short_request}.

decode_port2(<<>>) -> {error, short_request};
decode_port2(Name) ->
    case not has_nul(Name) andalso is_node_name(Name) of
        true -> {ok, {port2, Name}};
        false -> {error, bad_name}
    end.

%% @doc Whether epmd would take this for the name of a node: UTF-8, at most 255 characters.
-spec is_node_name(binary()) -> boolean().
is_node_name(Name) when byte_size(Name) =< ?MAX_FIELD_BYTES ->
    case unicode:characters_to_list(Name) of
        Chars when is_list(Chars) -> length(Chars) =< ?MAX_NAME_CHARS;
        _ -> false
    end;
is_node_name(_) -> false.

has_nul(Bin) -> binary:match(Bin, <<0>>) =/= nomatch.

strip_nul(<<>>) -> <<>>;
strip_nul(Bin) ->
    Len = byte_size(Bin) - 1,
    case Bin of
        <<Head:Len/binary, 0>> -> Head;
        _ -> Bin
    end.

c_string(Bin) -> hd(binary:split(Bin, <<0>>)).

%% @doc The request that registers a node.
-spec alive2_request(entry()) -> iodata().
alive2_request(#{name := Name, port := Port, node_type := Type, protocol := Protocol,
                 high := High, low := Low, extra := Extra}) ->
    framed([<<?ALIVE2_REQ, Port:16, Type, Protocol, High:16, Low:16, (byte_size(Name)):16>>, Name,
            <<(byte_size(Extra)):16>>, Extra]).

%% @doc The request for the port of a node.
-spec port2_request(binary()) -> iodata().
port2_request(Name) -> framed([?PORT2_REQ, Name]).

%% @doc The request to forget a name.
-spec stop_request(binary()) -> iodata().
stop_request(Name) -> framed([?STOP_REQ, Name]).

%% @doc The requests that are a tag and nothing else.
-spec simple_request(names | dump | kill) -> iodata().
simple_request(names) -> framed([?NAMES_REQ]);
simple_request(dump) -> framed([?DUMP_REQ]);
simple_request(kill) -> framed([?KILL_REQ]).

framed(Body) -> [<<(iolist_size(Body)):16>> | Body].

%%% Answers -----------------------------------------------------------------------------

%% @doc The answer to a registrant; its highest version decides how wide the creation is.
-spec alive2_response(non_neg_integer(), 4..16#ffffffff) -> binary().
alive2_response(High, Creation) when High >= ?VERSION_WIDE_CREATION ->
    <<?ALIVE2_X_RESP, 0, Creation:32>>;
alive2_response(_High, Creation) -> <<?ALIVE2_RESP, 0, (Creation rem 3 + 1):16>>.

%% @doc The answer to a registrant whose name is taken or bad.
-spec alive2_refusal(non_neg_integer()) -> binary().
alive2_refusal(High) when High >= ?VERSION_WIDE_CREATION ->
    <<?ALIVE2_X_RESP, 1, ?REFUSED_CODE:32>>;
alive2_refusal(_High) -> <<?ALIVE2_RESP, 1, ?REFUSED_CODE:16>>.

%% @doc The answer to a question for a port.
-spec port2_response(entry() | none) -> iodata().
port2_response(none) -> <<?PORT2_RESP, 1>>;
port2_response(#{name := Name, port := Port, node_type := Type, protocol := Protocol,
                 high := High, low := Low, extra := Extra}) ->
    [<<?PORT2_RESP, 0, Port:16, Type, Protocol, High:16, Low:16, (byte_size(Name)):16>>, Name,
     <<(byte_size(Extra)):16>>, Extra].

%% @doc The list of names, given newest first. Old nodes parse the text: not a byte may change.
-spec names_response(inet:port_number(), [{binary(), inet:port_number()}]) -> iodata().
names_response(EpmdPort, Names) ->
    [<<EpmdPort:32>> | [["name ", Name, " at port ", integer_to_binary(Port), $\n]
                        || {Name, Port} <- Names]].

%% @doc All that is known: the names in use, newest first, and the former ones, oldest first,
%% each with its port and file descriptor. epmd sends the NUL at the end of each line too.
-spec dump_response(inet:port_number(), [Line], [Line]) -> iodata() when
      Line :: {binary(), inet:port_number(), integer()}.
dump_response(EpmdPort, Active, Old) ->
    [<<EpmdPort:32>>,
     [io_lib:format("active name     <~ts> at port ~b, fd = ~b\n\0", [raw(N), P, Fd])
      || {N, P, Fd} <- Active],
     [io_lib:format("old/unused name <~ts>, port = ~b, fd = ~b \n\0", [raw(N), P, Fd])
      || {N, P, Fd} <- Old]].

%% The bytes of a name as characters below 256, so that formatting leaves them alone.
raw(Name) -> binary_to_list(Name).

%% @doc Read the answer to {@link alive2_request/1}, as far as it has arrived.
-spec decode_alive2_response(binary()) ->
          {ok, non_neg_integer()} | refused | more | {error, garbage}.
decode_alive2_response(<<?ALIVE2_X_RESP, 0, Creation:32>>) -> {ok, Creation};
decode_alive2_response(<<?ALIVE2_RESP, 0, Creation:16>>) -> {ok, Creation};
decode_alive2_response(<<?ALIVE2_X_RESP, _, _:32>>) -> refused;
decode_alive2_response(<<?ALIVE2_RESP, _, _:16>>) -> refused;
decode_alive2_response(<<?ALIVE2_X_RESP, B/binary>>) when byte_size(B) < 5 -> more;
decode_alive2_response(<<?ALIVE2_RESP, B/binary>>) when byte_size(B) < 3 -> more;
decode_alive2_response(<<>>) -> more;
decode_alive2_response(_) -> {error, garbage}.

%% @doc Read the answer to {@link port2_request/1}, as far as it has arrived.
-spec decode_port2_response(binary()) -> {ok, entry()} | noport | more | {error, garbage}.
decode_port2_response(<<?PORT2_RESP, 0, Port:16, Type, Protocol, High:16, Low:16,
                        NLen:16, Name:NLen/binary, ELen:16, Extra:ELen/binary, _/binary>>) ->
    {ok, #{name => Name, port => Port, node_type => Type, protocol => Protocol,
           high => High, low => Low, extra => Extra}};
decode_port2_response(<<?PORT2_RESP, 0, _/binary>>) -> more;
decode_port2_response(<<?PORT2_RESP, _, _/binary>>) -> noport;
decode_port2_response(<<?PORT2_RESP>>) -> more;
decode_port2_response(<<>>) -> more;
decode_port2_response(_) -> {error, garbage}.

%% @doc Read the whole answer to a request for the names. Lines of another form are skipped.
-spec decode_names_response(binary()) ->
          {ok, inet:port_number(), [{binary(), inet:port_number()}]} | {error, garbage}.
decode_names_response(<<EpmdPort:32, Text/binary>>) when EpmdPort =< 65535 ->
    Lines = binary:split(Text, <<"\n">>, [global]),
    {ok, EpmdPort, lists:append([names_line(L) || L <- Lines])};
decode_names_response(_) -> {error, garbage}.

names_line(<<"name ", Rest/binary>>) ->
    case binary:split(Rest, <<" at port ">>) of
        [Name, Digits] ->
            try [{Name, binary_to_integer(Digits)}]
            catch error:badarg -> []
            end;
        _ -> []
    end;
names_line(_) -> [].

%%% What Chatter says in the extra --------------------------------------------------------

%% @doc The extra of a node of Chatter: `chatter:Port' if Chatter listens, and `creation:C' if
%% the node already has a creation that a new server is to go on from.
-spec encode_extra(extra()) -> binary().
encode_extra(Extra) ->
    Words = [[<<"chatter:">>, integer_to_binary(P)] || #{chatter_port := P} <- [Extra]]
        ++ [[<<"creation:">>, integer_to_binary(C)] || #{creation := C} <- [Extra]],
    iolist_to_binary(lists:join($,, Words)).

%% @doc Read an extra. Whatever else stands in it is somebody else's, and skipped.
-spec decode_extra(binary()) -> extra().
decode_extra(Extra) ->
    lists:foldl(fun extra_word/2, #{}, binary:split(Extra, <<",">>, [global])).

extra_word(<<"chatter:", N/binary>>, Acc) -> extra_number(chatter_port, N, 1, 65535, Acc);
extra_word(<<"creation:", N/binary>>, Acc) -> extra_number(creation, N, 4, 16#ffffffff, Acc);
extra_word(_, Acc) -> Acc.

extra_number(Key, Digits, Min, Max, Acc) when byte_size(Digits) =< 10 ->
    try binary_to_integer(Digits) of
        N when N >= Min, N =< Max -> Acc#{Key => N};
        _ -> Acc
    catch error:badarg -> Acc
    end;
extra_number(_, _, _, _, Acc) -> Acc.
