%% What runs on the nodes that chatter_failover measures.
%%
%%   chatter_failover_sink   notes the longest pause between the numbered messages it gets
%%   chatter_failover_watch  keeps what net_kernel:monitor_nodes tells, with the time
%%   a sender, and a caller that asks for a connection again and again
-module(chatter_failover_node).

-export([sink/0, send_to/1, take/0, watch/0, events_since/1, keep_connected/1]).

-define(SINK, chatter_failover_sink).
-define(WATCH, chatter_failover_watch).

%% Numbered messages must come in order, or the sink ends, and take/0 fails.
-spec sink() -> ok.
sink() ->
    registered(?SINK, fun() -> sunk(0, now_us(), 0) end).

sunk(Last, LastUs, LongestUs) ->
    receive
        {_, N} when N =:= Last + 1 ->
            Now = now_us(),
            sunk(N, Now, max(LongestUs, Now - LastUs));
        {take, From, Ref} ->
            %% A pause that still lasts counts too.
            From ! {Ref, max(LongestUs, now_us() - LastUs)},
            sunk(Last, LastUs, 0)
    end.

%% The longest pause since the last call, in microseconds.
-spec take() -> non_neg_integer().
take() -> ask(?SINK, take).

%% A message to the sink of that node every millisecond.
-spec send_to(node()) -> ok.
send_to(Node) ->
    registered(chatter_failover_sender, fun() -> send({?SINK, Node}, 1) end).

send(To, N) ->
    To ! {self(), N},
    receive after 1 -> send(To, N + 1) end.

-spec watch() -> ok.
watch() ->
    registered(?WATCH, fun() -> ok = net_kernel:monitor_nodes(true), watched([]) end).

watched(Events) ->
    receive
        {What, Node} when What =:= nodeup; What =:= nodedown ->
            watched([{What, Node, os:system_time(millisecond)} | Events]);
        {take, From, Ref} -> From ! {Ref, lists:reverse(Events)}, watched(Events)
    end.

-spec events_since(integer()) -> [{nodeup | nodedown, node(), Ms :: integer()}].
events_since(Ms) -> [E || {_, _, At} = E <- ask(?WATCH, take), At >= Ms].

%% Somebody always wants to talk to these nodes.
-spec keep_connected([node()]) -> ok.
keep_connected(Nodes) ->
    _ = [spawn(fun() -> connect(Node) end) || Node <- Nodes],
    ok.

connect(Node) ->
    _ = net_kernel:connect_node(Node),
    receive after 20 -> connect(Node) end.

registered(Name, Fun) ->
    Caller = self(),
    Pid = spawn(fun() ->
                        process_flag(priority, high),
                        true = register(Name, self()),
                        Caller ! {self(), ready},
                        Fun()
                end),
    receive {Pid, ready} -> ok end.

ask(Name, What) ->
    Ref = monitor(process, Name),
    Name ! {What, self(), Ref},
    receive
        {Ref, Answer} -> demonitor(Ref, [flush]), Answer;
        {'DOWN', Ref, process, _, Reason} -> error({Name, Reason})
    end.

now_us() -> erlang:monotonic_time(microsecond).
