%% The measuring side of broadcast.py: one node sends small messages to processes on several others,
%% with one send for each node as plain Erlang does it, or by chatter:broadcast/2.
%%
%% Output, one line each: `figure NAME VALUE`. Receivers check that each message comes once and in
%% order, and a run in which one does not fails instead of being fast.
-module(chatter_fanout).

-export([serve/0, main/4]).

-define(CONNECT_TIMEOUT_MS, 20000).

%% A message of less than 100 bytes in Erlang's external term format.
-define(PAYLOAD, 60).

%% A receiver: says that it has booted, and waits for what it is asked to count.
-spec serve() -> no_return().
serve() ->
    io:format("ready ~s~n", [node()]),
    true = register(fanout, self()),
    serving().

serving() ->
    receive
        {count, Count, Subscribe, To} ->
            Pid = spawn(fun() -> counting(Count, Subscribe, To) end),
            _ = [register(sink, Pid) || not Subscribe],
            To ! {ready, node()},
            serving()
    end.

counting(Count, Subscribe, To) ->
    process_flag(message_queue_data, off_heap),
    _ = [ok = chatter:subscribe(fanout, Count) || Subscribe],
    To ! {counting, node()},
    counted(1, Count, To).

counted(N, Count, To) when N > Count ->
    To ! {done, node()};
counted(N, Count, To) ->
    receive
        {fanout, N, _} -> counted(N + 1, Count, To);
        {chatter_broadcast, _, {fanout, N, _}} -> counted(N + 1, Count, To);
        {fanout, Other, _} -> To ! {disorder, node(), N, Other};
        {chatter_broadcast, _, {fanout, Other, _}} -> To ! {disorder, node(), N, Other}
    end.

%% The sender: `How' is `plain' or `broadcast'.
-spec main([node()], plain | broadcast, pos_integer(), string()) -> no_return().
main(Nodes, How, Count, Name) ->
    try
        _ = [connect(Node, erlang:monotonic_time(millisecond) + ?CONNECT_TIMEOUT_MS)
             || Node <- Nodes],
        %% A short one first: code is loaded, links and queues are warm.
        _ = run(Nodes, How, Count div 20 + 1),
        Us = run(Nodes, How, Count),
        io:format("figure ~s ~.1f~n", [Name, Count * length(Nodes) * 1.0e6 / Us]),
        _ = [io:format("~0p~n", [chatter_broadcast:figures()]) || How =:= broadcast],
        halt(0)
    catch
        Class:Reason:Stack ->
            io:format("failed ~0p~n", [{How, Class, Reason, Stack}]),
            halt(1)
    end.

connect(Node, Deadline) ->
    case net_adm:ping(Node) of
        pong -> ok;
        pang ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({no_connection, Node}),
            receive after 50 -> connect(Node, Deadline) end
    end.

%% Microseconds from the first send until every receiver has had everything.
run(Nodes, How, Count) ->
    Self = self(),
    [{fanout, Node} ! {count, Count, How =:= broadcast, Self} || Node <- Nodes],
    [receive {ready, Node} -> ok end || Node <- Nodes],
    [receive {counting, Node} -> ok end || Node <- Nodes],
    Payload = binary:copy(<<"x">>, ?PAYLOAD),
    true = byte_size(term_to_binary({fanout, Count, Payload})) < 100,
    Start = erlang:monotonic_time(microsecond),
    ok = send(How, Nodes, Payload, 1, Count),
    [receive
         {done, Node} -> ok;
         {disorder, _, _, _} = Wrong -> error(Wrong)
     end || Node <- Nodes],
    erlang:monotonic_time(microsecond) - Start.

send(_, _, _, N, Count) when N > Count -> ok;
send(plain, Nodes, Payload, N, Count) ->
    Message = {fanout, N, Payload},
    _ = [{sink, Node} ! Message || Node <- Nodes],
    send(plain, Nodes, Payload, N + 1, Count);
send(broadcast, Nodes, Payload, N, Count) ->
    ok = chatter:broadcast(Nodes, {fanout, N, Payload}),
    send(broadcast, Nodes, Payload, N + 1, Count).
