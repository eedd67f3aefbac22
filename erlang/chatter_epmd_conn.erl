%% SPDX-License-Identifier: Apache-2.0
%%
%% One connection of the registry, from the accept to its end. It reads one request, of
%% bounded size and in bounded time, has the registry decide, sends the answer, and closes;
%% or, after a registration, stays until the node closes.
%%
%%     chatter_epmd_registry ──link── conn (accepts) ── becomes ──► conn (serves one peer)
%%             │                                                        owns the socket
%%             └── starts the next one that accepts when told `accepted'
%%
%% The end of this process is the end of the registration. It dies with the registry.
-module(chatter_epmd_conn).

-export([start_link/3, init/4]).

%% After an accept that failed (no file descriptors, say) the next one waits so long.
-define(ACCEPT_BACKOFF_MS, 50).

%% @doc Start a process that accepts one connection on a listening socket.
-spec start_link(pid(), gen_tcp:socket(), pos_integer()) -> {ok, pid()}.
start_link(Registry, Listen, RequestMs) ->
    proc_lib:start_link(?MODULE, init, [self(), Registry, Listen, RequestMs]).

%% @private
-spec init(pid(), pid(), gen_tcp:socket(), pos_integer()) -> ok.
init(Parent, Registry, Listen, RequestMs) ->
    proc_lib:init_ack(Parent, {ok, self()}),
    Socket = accept(Registry, Listen),
    Local = is_local(Socket),
    Registry ! {accepted, self(), Listen, Local},
    Deadline = erlang:monotonic_time(millisecond) + RequestMs,
    case read_request(Socket, Deadline) of
        {ok, Request} -> handle(Request, Local, Registry, Socket, Deadline);
        {error, Reason} -> reject(Registry, Reason)
    end,
    gen_tcp:close(Socket).

reject(Registry, Reason) ->
    Registry ! {rejected, self(), Reason},
    ok.

accept(Registry, Listen) ->
    case gen_tcp:accept(Listen) of
        {ok, Socket} -> Socket;
        {error, closed} -> exit({shutdown, listener_closed});
        {error, Reason} ->
            Registry ! {accept_failed, self(), Reason},
            receive after ?ACCEPT_BACKOFF_MS -> accept(Registry, Listen) end
    end.

%% As epmd has it: the loopback network, or a peer with the very address it has reached.
is_local(Socket) ->
    case inet:peername(Socket) of
        {ok, {{127, _, _, _}, _}} -> true;
        {ok, {{0, 0, 0, 0, 0, 0, 0, 1}, _}} -> true;
        {ok, {Address, _}} ->
            case inet:sockname(Socket) of
                {ok, {Address, _}} -> true;
                _ -> false
            end;
        {error, _} -> false
    end.

read_request(Socket, Deadline) -> read_request(Socket, Deadline, <<>>).

read_request(Socket, Deadline, Got) ->
    case recv(Socket, 0, Deadline) of
        {ok, Data} ->
            All = <<Got/binary, Data/binary>>,
            case chatter_epmd_wire:request_length(All) of
                {ok, Len} -> read_body(Socket, Deadline, Len, All);
                more -> read_request(Socket, Deadline, All);
                {error, _} = Error -> Error
            end;
        {error, _} = Error -> Error
    end.

%% More than the request in the read that brought its length is refused; what comes later is
%% not looked at. (So does epmd.)
read_body(Socket, Deadline, Len, <<_:16, Body/binary>>) ->
    case Len - byte_size(Body) of
        0 -> chatter_epmd_wire:decode_request(Body);
        Missing when Missing < 0 -> {error, trailing_bytes};
        Missing ->
            case recv(Socket, Missing, Deadline) of
                {ok, Rest} -> chatter_epmd_wire:decode_request(<<Body/binary, Rest/binary>>);
                {error, _} = Error -> Error
            end
    end.

recv(Socket, Len, Deadline) -> gen_tcp:recv(Socket, Len, left(Deadline)).

left(Deadline) -> max(0, Deadline - erlang:monotonic_time(millisecond)).

handle(Request, Local, Registry, Socket, Deadline) ->
    case chatter_epmd_registry:request(Registry, Request, Local, fd(Socket)) of
        {answer, Data, Then} ->
            _ = gen_tcp:send(Socket, Data),
            finish(Then, Registry, Socket, Deadline);
        {refuse, Reason} -> reject(Registry, Reason)
    end.

finish(close, _Registry, _Socket, _Deadline) -> ok;
%% epmd leaves a refused registrant connected for good; here it has what is left of its time.
finish(linger, _Registry, Socket, Deadline) -> wait_for_end(Socket, left(Deadline));
finish(keep, _Registry, Socket, _Deadline) -> wait_for_end(Socket, infinity);
finish(kill, Registry, Socket, _Deadline) ->
    ok = gen_tcp:close(Socket),
    Registry ! {killed, self()},
    ok.

%% Whatever a registered node sends ends its registration.
wait_for_end(Socket, Timeout) ->
    _ = inet:setopts(Socket, [{active, once}]),
    receive
        {tcp, Socket, _} -> ok;
        {tcp_closed, Socket} -> ok;
        {tcp_error, Socket, _} -> ok
    after Timeout -> ok
    end.

fd(Socket) ->
    case inet:getfd(Socket) of
        {ok, Fd} -> Fd;
        {error, _} -> -1
    end.
