%% What the network knows of nodes, and how a relay leaves it: monitor_nodes/1 and drain/1.
-module(chatter_routing_SUITE).
-behaviour(ct_suite).

-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_work, [on/2, start/2]).
-import(chatter_cluster, [wait_until/2]).

-define(TIMEOUT_MS, 10000).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [drained_relay, only_way, nodes_are_told, subscriptions, told_of_the_end, namesake].

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

end_per_testcase(_Case, _Config) -> chatter_cluster:stop_all().

%%% drain/1

%% Given two relays under traffic, expect each to be free of it when drain/1 has returned, to be
%% reached still, and to stop without anybody noticing: nothing lost, no nodedown.
drained_relay(_Config) ->
    Relays = [start(N, #{links => static}) || N <- [r1, r2]],
    [#{node := NodeA} = A, #{node := NodeB} = B] = Ends =
        [start(N, #{links => static, neighbours => Relays}) || N <- [a, b]],
    ok = chatter_cluster:await_routes(Ends ++ Relays, ?TIMEOUT_MS),
    chatter_work:connect(A, B),
    [ok = chatter_work:watch(N) || N <- Ends],
    [ok = chatter_work:sink(N, steady) || N <- Ends],
    {Senders, Each} = {10, 30000},
    _ = chatter_work:flood(A, {steady, NodeB}, {Senders, Each}, [100, 1000, 0, 20000]),
    _ = chatter_work:flood(B, {steady, NodeA}, {Senders, Each}, [100, 1000, 0, 20000]),
    [wait_until(fun() -> element(1, chatter_work:seen(N, steady)) > 1000 end, ?TIMEOUT_MS)
     || N <- Ends],
    %% The one that is used: of two equally short ways flows stay on theirs while they have
    %% something queued, whichever route/1 shows.
    {_, #{node := Used} = Relay} =
        lists:last(lists:keysort(1, [{on(R, fun() -> maps:get(transit_packets, chatter:info()) end),
                                      R} || R <- Relays])),
    ?assertMatch(#{draining := false}, on(Relay, fun chatter:info/0)),
    ?assertEqual(ok, on(Relay, fun() -> chatter:drain(true) end)),
    #{transit_packets := Packets} = Drained = on(Relay, fun chatter:info/0),
    ?assertMatch(#{draining := true, transit_idle_ms := Idle} when Idle >= 500, Drained),
    ?assert(Packets > 0),
    ?assertEqual([[Used], [Used]], [on(N, fun() -> {ok, Hops} = chatter:route(Used), Hops end)
                                    || N <- Ends]),
    {Seen, []} = chatter_work:seen(B, steady),
    ct:pal("~b of ~b messages had arrived when the relay was drained", [Seen, Senders * Each]),
    ?assert(Seen < Senders * Each),
    ok = chatter_cluster:stop(Relay),
    [chatter_work:await_seen({N, steady}, Senders * Each, 40000) || N <- Ends],
    ?assertEqual([], lists:append([chatter_work:events(N) || N <- Ends])).

%% Given the only relay of a line, expect drain/1 to say that others still use it, them to notice
%% nothing, and the request to be taken back.
only_way(_Config) ->
    [A, R, #{node := NodeB} = B] = line(3),
    chatter_work:connect(A, B),
    ok = chatter_work:watch(A),
    ok = chatter_work:sink(B, on_and_on),
    %% Some 12 s of traffic.
    _ = on(A, fun() -> spawn(fun() -> [begin
                                           {on_and_on, NodeB} ! {self(), N, <<>>},
                                           timer:sleep(100)
                                       end || N <- lists:seq(1, 120)]
                             end) end),
    ?assertEqual({error, transit}, on(R, fun() -> chatter:drain(true) end)),
    ?assertMatch(#{draining := true}, on(R, fun chatter:info/0)),
    ?assertEqual(ok, on(R, fun() -> chatter:drain(false) end)),
    ?assertMatch(#{draining := false}, on(R, fun chatter:info/0)),
    chatter_work:await_seen({B, on_and_on}, 120, 20000),
    ?assertEqual([], chatter_work:events(A)).

%%% monitor_nodes/1

%% Given a process that monitors at one end of a line, expect it to be told once of each node that
%% comes and goes at the other end, in time, with no connection anywhere.
nodes_are_told(_Config) ->
    [A, #{node := NodeR} = R] = line(2),
    ok = listen(A),
    #{node := NodeC} = C = start(c, #{links => static, neighbours => [R]}),
    wait_until(fun() -> [{node_up, NodeC}] =:= told(A) end, ?TIMEOUT_MS),
    ?assertEqual(lists:sort([NodeR, NodeC]), on(A, fun() -> lists:sort(chatter:nodes()) end)),
    ok = chatter_cluster:kill9(C),
    Killed = chatter_work:now_ms(),
    wait_until(fun() -> [{node_up, NodeC}, {node_down, NodeC}] =:= told(A) end, ?TIMEOUT_MS),
    Took = chatter_work:now_ms() - Killed,
    ct:pal("node_down ~b ms after the process was gone", [Took]),
    ?assert(Took =< 1000),
    C2 = start(c, #{links => static, neighbours => [R]}),
    wait_until(fun() -> {node_up, NodeC} =:= lists:last(told(A)) end, ?TIMEOUT_MS),
    %% A node that stops says so: it is not waited for.
    ok = chatter_cluster:stop(C2),
    Stopped = chatter_work:now_ms(),
    wait_until(fun() -> {node_down, NodeC} =:= lists:last(told(A)) end, ?TIMEOUT_MS),
    ?assert(chatter_work:now_ms() - Stopped =< 1000),
    ?assertEqual(4, length(told(A))),
    ?assertEqual([[], []], [on(N, fun() -> nodes(connected) end) || N <- [A, R]]).

%% Given subscriptions, expect one message however often a process has asked, none after it has
%% asked for no more, none for the dead, and a crash of chatter_node to end none.
subscriptions(_Config) ->
    [A, R] = line(2),
    [ok = listen(A) || _ <- [1, 2]],
    Groups = on(A, fun() -> whereis(chatter_group_srv) end),
    Alive = on(A, fun chatter_monitors:subscribers/0),
    ?assertMatch([_], Alive -- [Groups]),
    on(A, fun() ->
                  {Pid, Ref} = spawn_monitor(fun() -> ok = chatter:monitor_nodes(true) end),
                  receive {'DOWN', Ref, process, Pid, normal} -> ok end,
                  ok = chatter:monitor_nodes(true),
                  ok = chatter:monitor_nodes(false),
                  ok = chatter:monitor_nodes(false)
          end),
    wait_until(fun() -> Alive =:= on(A, fun chatter_monitors:subscribers/0) end, ?TIMEOUT_MS),
    on(A, fun() ->
                  Old = whereis(chatter_node),
                  exit(Old, kill),
                  wait_until(fun() -> is_pid(whereis(chatter_node))
                                          andalso whereis(chatter_node) =/= Old end, ?TIMEOUT_MS)
          end),
    #{node := NodeC} = start(c, #{links => static, neighbours => [R]}),
    wait_until(fun() -> [{node_up, NodeC}] =:= told(A) end, ?TIMEOUT_MS),
    on(A, fun() -> exit(whereis(listener), kill) end),
    wait_until(fun() -> [Groups] =:= on(A, fun chatter_monitors:subscribers/0) end, ?TIMEOUT_MS),
    ?assertEqual({error, not_started}, chatter:monitor_nodes(true)).

%% Given distribution stopped, expect every node to be told down, and subscriptions to be over.
told_of_the_end(_Config) ->
    B = start(b, #{links => static}),
    Flags = chatter_work:flags(#{links => static, neighbours => [B]}),
    Code = io_lib:format("chatter_routing_SUITE:ends('~s')", [maps:get(node, B)]),
    Output = chatter_cluster:run_node(Flags ++ ["-eval", lists:flatten(Code) ++ ", halt()."], 30000,
                                      #{}),
    ?assertMatch({0, _}, Output).

ends(NodeB) ->
    {ok, _} = net_kernel:start([ends, shortnames]),
    ok = chatter:monitor_nodes(true),
    receive {chatter, node_up, NodeB} -> ok after ?TIMEOUT_MS -> error(not_up) end,
    ok = net_kernel:stop(),
    receive {chatter, node_down, NodeB} -> ok after ?TIMEOUT_MS -> error(not_down) end,
    {error, not_started} = chatter:monitor_nodes(true).

%%% Namesakes

%% Given a node of a name that another one has, on a host that the registry of the first does not
%% see, expect it to get no links, one line from it and one from who refused it, and the first one
%% to go on undisturbed; when that is gone, expect the other to be taken in.
namesake(_Config) ->
    Port = chatter_cluster:free_port(),
    #{node := NodeA} = A = start(a, #{}),
    #{node := NodeB} = B = start(b, #{links => static, neighbours => [A],
                                      chatter => [{my_port, Port}]}),
    chatter_work:connect(B, A),
    ok = chatter_work:watch(B),
    ok = log_lines(B),
    Elsewhere = chatter_cluster:free_port(),
    [Erl | Rest] = [os:find_executable("erl"), "-noinput"
                    | chatter_cluster:node_args(a, #{links => static,
                                                     neighbours => [{"127.0.0.1", Port}]})],
    Env = chatter_cluster:node_env(#{env => [{"ERL_EPMD_PORT", integer_to_list(Elsewhere)}]}),
    Clone = chatter_cluster:open(Erl, Rest, #{env => Env}),
    Line = io_lib:format("two nodes have the name ~s", [NodeA]),
    _ = chatter_cluster:await_output(Clone, Line, 20000),
    wait_until(fun() -> 1 =:= log_lines(B, Line) end, ?TIMEOUT_MS),
    ?assertEqual([], chatter_work:events(B)),
    ?assertEqual(NodeA, on(B, fun() -> erpc:call(NodeA, erlang, node, []) end)),
    ?assertEqual(chatter_cluster:os_pid(A), on(B, fun() -> erpc:call(NodeA, os, getpid, []) end)),
    ok = chatter_cluster:kill9(A),
    wait_until(fun() -> [NodeA] =:= on(B, fun chatter:neighbours/0) end, ?TIMEOUT_MS),
    ?assertEqual(1, log_lines(B, Line)),
    ?assertEqual(NodeB, maps:get(node, B)).

%% Has the node keep what it logs.
log_lines(Peer) ->
    on(Peer, fun() ->
                     Keeper = spawn(fun() -> keeping([]) end),
                     register(log_keeper, Keeper),
                     logger:add_handler(?MODULE, ?MODULE, #{})
             end).

log(#{msg := {Format, Args}}, _) when is_list(Format) ->
    log_keeper ! {line, io_lib:format(Format, Args)};
log(_, _) -> ok.

keeping(Lines) ->
    receive
        {line, Line} -> keeping([Line | Lines]);
        {From, lines} -> From ! {log_keeper, Lines}, keeping(Lines)
    end.

%% How many lines have it in them.
log_lines(Peer, Part) ->
    Lines = on(Peer, fun() -> log_keeper ! {self(), lines},
                              receive {log_keeper, Lines} -> Lines end end),
    length([Line || Line <- Lines, nomatch =/= string:find(Line, Part)]).

%%% Helpers

line(N) ->
    chatter_cluster:line(N, #{args => ["-pa", filename:dirname(code:which(?MODULE))]}).

%% A process on the node that keeps what it is told.
listen(Peer) ->
    on(Peer, fun() ->
                     case whereis(listener) of
                         undefined -> register(listener, spawn(fun() -> listening([]) end));
                         _ -> true
                     end,
                     listener ! {self(), subscribe},
                     receive {listener, subscribed} -> ok end
             end).

listening(Told) ->
    receive
        {From, subscribe} ->
            ok = chatter:monitor_nodes(true),
            From ! {listener, subscribed},
            listening(Told);
        {From, told} ->
            From ! {listener, lists:reverse(Told)},
            listening(Told);
        {chatter, Event, Node} -> listening([{Event, Node} | Told])
    end.

told(Peer) ->
    on(Peer, fun() -> listener ! {self(), told}, receive {listener, Told} -> Told end end).
