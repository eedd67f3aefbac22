%% SPDX-License-Identifier: Apache-2.0
%%
%% The client's side of the epmd protocol: functions that connect, ask and return, all with a
%% time limit. They run in the process of the caller.
-module(chatter_epmd_client).

-export([register/3, port/4, names/3, ask_local/2, addresses/2]).

%% A registry that is there answers at once.
-define(REPLY_MS, 10000).
%% A question about a node waits no longer for the connection: its SYN has been repeated once by
%% then. Who asks for a dial asks again, and is not to sleep through the return of a way.
-define(CONNECT_MS, 1200).
%% An answer with the names of a very full host is below this.
-define(MAX_ANSWER_BYTES, 16#1000000).

%% @doc Register with the registry of this host. The name lives as long as the socket, which
%% is in active mode.
-spec register(inet:port_number(), chatter_epmd_wire:entry(), pos_integer()) ->
          {ok, gen_tcp:socket(), non_neg_integer()} | refused | {error, term()}.
register(EpmdPort, Entry, TimeoutMs) ->
    Deadline = deadline(TimeoutMs),
    case connect_local(EpmdPort, Deadline) of
        {ok, Socket} ->
            Answer = exchange(Socket, chatter_epmd_wire:alive2_request(Entry), Deadline,
                              fun chatter_epmd_wire:decode_alive2_response/1),
            registered(Answer, Socket);
        {error, Reason} -> {error, Reason}
    end.

registered({ok, Creation}, Socket) ->
    case inet:setopts(Socket, [{active, true}]) of
        ok -> {ok, Socket, Creation};
        {error, _} -> registered({error, closed}, Socket)
    end;
registered(Failure, Socket) ->
    gen_tcp:close(Socket),
    case Failure of
        refused -> refused;
        {error, Reason} -> {error, {not_epmd, Reason}}
    end.

%% @doc Ask the registry at an address for a node.
-spec port(inet:ip_address(), inet:port_number(), binary(), timeout()) ->
          {ok, chatter_epmd_wire:entry()} | noport | closed |
          {error, unreachable | garbage | timeout | inet:posix()}.
port(Address, EpmdPort, Name, Timeout) ->
    Deadline = deadline(Timeout),
    case connect(Address, EpmdPort, min(Deadline, deadline(?CONNECT_MS))) of
        {ok, Socket} ->
            Answer = exchange(Socket, chatter_epmd_wire:port2_request(Name), Deadline,
                              fun chatter_epmd_wire:decode_port2_response/1),
            gen_tcp:close(Socket),
            case Answer of
                {error, closed} -> closed;
                _ -> Answer
            end;
        {error, _} -> {error, unreachable}
    end.

%% @doc Ask the registry at an address for all names, newest first.
-spec names(inet:ip_address(), inet:port_number(), timeout()) ->
          {ok, inet:port_number(), [{binary(), inet:port_number()}]} | {error, term()}.
names(Address, EpmdPort, Timeout) ->
    Deadline = deadline(Timeout),
    case connect(Address, EpmdPort, Deadline) of
        {ok, Socket} ->
            Answer = send_and_drain(Socket, chatter_epmd_wire:simple_request(names), Deadline),
            case Answer of
                {ok, Bytes} -> chatter_epmd_wire:decode_names_response(Bytes);
                {error, _} -> Answer
            end;
        {error, _} -> {error, unreachable}
    end.

%% @doc Send a request to the registry of this host and return whatever it answers.
-spec ask_local(inet:port_number(), iodata()) -> {ok, binary()} | {error, term()}.
ask_local(EpmdPort, Request) ->
    Deadline = deadline(?REPLY_MS),
    case connect_local(EpmdPort, Deadline) of
        {ok, Socket} -> send_and_drain(Socket, Request, Deadline);
        {error, _} -> {error, unreachable}
    end.

%% @doc The addresses of a host, those of the resolver's preferred family first.
-spec addresses(atom() | string() | inet:ip_address(), timeout()) ->
          {ok, [inet:ip_address(), ...]} | {error, term()}.
addresses(Host, _Timeout) when is_tuple(Host) -> {ok, [Host]};
addresses(Host, Timeout) ->
    Families = case inet_db:res_option(inet6) of
                   true -> [inet6, inet];
                   false -> [inet, inet6]
               end,
    Found = [{inet:getaddrs(Host, Family, Timeout), Family} || Family <- Families],
    case lists:append([As || {{ok, As}, _} <- Found]) of
        [] ->
            {{error, Reason}, _} = hd(Found),
            {error, Reason};
        Addresses -> {ok, unique(Addresses)}
    end.

unique([]) -> [];
unique([A | Rest]) -> [A | unique([B || B <- Rest, B =/= A])].

%%% Sockets ------------------------------------------------------------------------------

%% IPv6 is tried only where there is no IPv4 at all, because IPv4 decides who serves.
connect_local(EpmdPort, Deadline) ->
    case connect({127, 0, 0, 1}, EpmdPort, Deadline) of
        {error, Reason} when Reason =:= eafnosupport; Reason =:= eaddrnotavail;
                             Reason =:= enetunreach; Reason =:= eprotonosupport ->
            connect({0, 0, 0, 0, 0, 0, 0, 1}, EpmdPort, Deadline);
        Other -> Other
    end.

connect(Address, Port, Deadline) ->
    Family = case tuple_size(Address) of
                 4 -> inet;
                 8 -> inet6
             end,
    Options = [Family, binary, {active, false}, {packet, raw}, {nodelay, true},
               {send_timeout, ?REPLY_MS}],
    gen_tcp:connect(Address, Port, Options, left(Deadline)).

exchange(Socket, Request, Deadline, Decode) ->
    case gen_tcp:send(Socket, Request) of
        ok -> receive_answer(Socket, Deadline, Decode, <<>>);
        {error, _} = Error -> Error
    end.

receive_answer(Socket, Deadline, Decode, Got) ->
    case gen_tcp:recv(Socket, 0, left(Deadline)) of
        {ok, Data} ->
            case Decode(<<Got/binary, Data/binary>>) of
                more when byte_size(Got) < ?MAX_ANSWER_BYTES ->
                    receive_answer(Socket, Deadline, Decode, <<Got/binary, Data/binary>>);
                more -> {error, garbage};
                Decoded -> Decoded
            end;
        {error, _} = Error -> Error
    end.

send_and_drain(Socket, Request, Deadline) ->
    Answer = case gen_tcp:send(Socket, Request) of
                 ok -> drain(Socket, Deadline, [], 0);
                 {error, _} = Error -> Error
             end,
    gen_tcp:close(Socket),
    Answer.

drain(_Socket, _Deadline, _Acc, Size) when Size > ?MAX_ANSWER_BYTES -> {error, garbage};
drain(Socket, Deadline, Acc, Size) ->
    case gen_tcp:recv(Socket, 0, left(Deadline)) of
        {ok, Data} -> drain(Socket, Deadline, [Acc, Data], Size + byte_size(Data));
        {error, closed} -> {ok, iolist_to_binary(Acc)};
        {error, _} = Error -> Error
    end.

%% Nobody waits for ever: `infinity' is the longest time an answer may take.
deadline(infinity) -> deadline(?REPLY_MS);
deadline(Ms) -> erlang:monotonic_time(millisecond) + Ms.

left(Deadline) -> max(0, Deadline - erlang:monotonic_time(millisecond)).
