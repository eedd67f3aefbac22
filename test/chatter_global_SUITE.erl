%% What `global', which keeps clusters from overlapping, makes of connections that end and begin
%% anew: it must never be led to cut off nodes that nothing has happened to.
-module(chatter_global_SUITE).
-behaviour(ct_suite).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_cluster, [wait_until/2]).
-import(chatter_work, [on/2]).

-define(TIMEOUT_MS, 15000).
%% How long `global' does nothing after its node was stopped.
-define(SLOW_MS, 700).
%% The protocol of `global' in OTP 25.
-define(GLOBAL_VSN, 8).
%% How long `global' of one of the others does nothing after a node is there again.
-define(LATE_MS, 1500).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [stopped_and_slow, returned_and_late, restarted_and_late, told_of_and_no_route, quiet_ends,
     told_of_disconnects].

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

end_per_testcase(_Case, _Config) -> chatter_cluster:stop_all().

%% Given a node that is stopped until all others have given it up, whose `global' hears of that long
%% after it has gone on, while the others do their best to connect again: expect it down and up once
%% at each of them, and nobody else down.
stopped_and_slow(_Config) ->
    Peers = [A, B, C, #{node := NodeD} = D] = known_mesh(),
    [ok = chatter_work:watch(P) || P <- Peers],
    ok = slow_after_stop(D),
    [ok = keep_connecting(P, NodeD) || P <- [A, B, C]],
    ok = chatter_cluster:freeze(D),
    [chatter_work:await_down(P, NodeD, ?TIMEOUT_MS) || P <- [A, B, C]],
    receive after 500 -> ok end,
    ok = chatter_cluster:thaw(D),
    Woken = chatter_work:now_ms(),
    [wait_until(fun() -> lists:member(NodeD, on(P, fun() -> nodes() end)) end, ?TIMEOUT_MS)
     || P <- [A, B, C]],
    ct:pal("connected again ~b ms after having gone on", [chatter_work:now_ms() - Woken]),
    [await_known(P) || P <- Peers],
    %% What `global' sends around has arrived.
    receive after 1000 -> ok end,
    [?assertMatch([{nodedown, NodeD, _}, {nodeup, NodeD, _}], chatter_work:events(P))
     || P <- [A, B, C]],
    [?assertEqual([nodedown, nodeup], [What || {What, N, _} <- chatter_work:events(D), N =:= Node])
     || #{node := Node} <- [A, B, C]].

%% Given a node that is stopped until all others have given it up, while `global' of one of them
%% does not hear of that before the node has gone on: expect it down and up once at each of them.
returned_and_late(_Config) ->
    late_at_one(fun(#{node := NodeD} = D, Others) ->
                        ok = chatter_cluster:freeze(D),
                        [chatter_work:await_down(P, NodeD, ?TIMEOUT_MS) || P <- Others],
                        ok = chatter_cluster:thaw(D)
                end).

%% Given the same with a node that is killed and started again, expect the same.
restarted_and_late(_Config) ->
    late_at_one(fun(D, _) ->
                        ok = chatter_cluster:kill9(D),
                        chatter_cluster:start(n4, #{links => static, neighbours => [n1, n2, n3]})
                end).

%% Given a node that was killed, of which `global' of another hears from a third that it is there
%% again before there is a route to it: expect that one to connect to it when there is, and to tell
%% nobody that it could not.
told_of_and_no_route(_Config) ->
    [A, #{node := NodeB}, #{node := NodeC} = C, #{node := NodeD} = D] = known_mesh(),
    ok = chatter_cluster:kill9(D),
    wait_until(fun() -> not lists:member(NodeD, on(C, fun() -> nodes() end)) end, ?TIMEOUT_MS),
    pang = on(C, fun() -> net_adm:ping(NodeD) end),
    NewNodes = {new_nodes, NodeB, [], [], [{NodeD, ?GLOBAL_VSN}], []},
    ok = on(C, fun() -> gen_server:cast(global_name_server, NewNodes) end),
    _ = chatter_cluster:start(n4, #{links => static, neighbours => [n1, n2, n3]}),
    wait_until(fun() -> lists:member(NodeD, on(C, fun() -> nodes() end)) end, ?TIMEOUT_MS),
    receive after 500 -> ok end,
    Heard = fun() -> ets:lookup(global_lost_connections, {NodeC, NodeD}) end,
    ?assertEqual([], on(A, Heard)).

%% Given nodes that stop, that are killed, and that come back and are killed again, expect that
%% `global' of the others warns of nothing, as over stock distribution.
quiet_ends(_Config) ->
    [A, B, #{node := NodeC} = C, D] = known_mesh(),
    [ok = keep_warnings(P) || P <- [A, B]],
    ok = chatter_cluster:call(C, init, stop, []),
    ok = chatter_cluster:kill9(D),
    [wait_until(fun() -> length(on(P, fun() -> nodes() end)) =:= 1 end, ?TIMEOUT_MS)
     || P <- [A, B]],
    ok = chatter_cluster:stop(C),
    Again = chatter_cluster:start(n3, #{links => static, neighbours => [n1, n2]}),
    [begin
         wait_until(fun() -> on(P, fun() -> net_adm:ping(NodeC) end) =:= pong end, ?TIMEOUT_MS),
         wait_until(fun() -> on(P, fun() -> knows(NodeC) end) end, ?TIMEOUT_MS)
     end || P <- [A, B]],
    ok = chatter_cluster:kill9(Again),
    [begin
         wait_until(fun() -> length(on(P, fun() -> nodes() end)) =:= 1 end, ?TIMEOUT_MS),
         ?assertEqual([], warnings(P))
     end || P <- [A, B]].

%% Given a disconnect of two nodes that others see too, expect that `global' warns of what it does
%% about that, as ever; also of a node that has been gone before.
told_of_disconnects(_Config) ->
    [A, B, C, #{node := NodeD} = D] = known_mesh(),
    ok = chatter_cluster:kill9(D),
    Others = [A, B, C],
    [wait_until(fun() -> length(on(P, fun() -> nodes() end)) =:= 2 end, ?TIMEOUT_MS)
     || P <- Others],
    _ = chatter_cluster:start(n4, #{links => static, neighbours => [n1, n2, n3]}),
    [wait_until(fun() -> on(P, fun() -> net_adm:ping(NodeD), knows(NodeD) end) end, ?TIMEOUT_MS)
     || P <- Others],
    [ok = keep_warnings(P) || P <- Others],
    true = on(A, fun() -> erlang:disconnect_node(NodeD) end),
    wait_until(fun() -> warnings(B) =/= [] andalso warnings(C) =/= [] end, ?TIMEOUT_MS),
    [?assertMatch([_ | _], [W || W <- warnings(P), string:find(W, atom_to_list(NodeD)) =/= nomatch])
     || P <- [B, C]].

%% What `global' of C has to say of the connection that is over must not end the next one.
late_at_one(AwayAndBack) ->
    [A, B, C, #{node := NodeD} = D] = known_mesh(),
    Others = [A, B, C],
    [ok = chatter_work:watch(P) || P <- Others],
    [ok = keep_connecting(P, NodeD) || P <- Others],
    ok = suspend_global(C),
    _ = AwayAndBack(D, Others),
    Back = chatter_work:now_ms(),
    receive after ?LATE_MS -> ok end,
    ok = resume_global(C),
    [wait_until(fun() -> on(P, fun() -> nodes() end) end, NodeD, ?TIMEOUT_MS) || P <- Others],
    ct:pal("connected again after ~b ms", [chatter_work:now_ms() - Back]),
    %% What `global' sends around has arrived.
    receive after 1000 -> ok end,
    ct:pal("~p", [[chatter_work:events(P) || P <- Others]]),
    [?assertMatch([{nodedown, NodeD, _}, {nodeup, NodeD, _}], chatter_work:events(P))
     || P <- Others].

%%% Helpers

%% Four nodes that `global' of each knows.
known_mesh() ->
    Peers = chatter_cluster:mesh(4, #{args => ["-pa", filename:dirname(code:which(?MODULE))]}),
    [chatter_work:connect(P, Q) || P <- Peers, Q <- Peers, P =/= Q],
    [await_known(P) || P <- Peers],
    Peers.

wait_until(Nodes, Node, TimeoutMs) ->
    wait_until(fun() -> lists:member(Node, Nodes()) end, TimeoutMs).

suspend_global(Peer) ->
    on(Peer, fun() ->
                     Self = self(),
                     spawn(fun() ->
                                   true = register(?MODULE, self()),
                                   true = erlang:suspend_process(whereis(global_name_server)),
                                   Self ! suspended,
                                   receive resume -> ok end
                           end),
                     receive suspended -> ok end
             end).

%% The end of the process that suspended it resumes it.
resume_global(Peer) -> on(Peer, fun() -> ?MODULE ! resume, ok end).

%% From now on the warnings of the node are kept for warnings/1.
keep_warnings(Peer) ->
    on(Peer, fun() ->
                     Keeper = spawn(fun() -> keeper([]) end),
                     logger:add_handler(?MODULE, ?MODULE, #{config => Keeper})
             end).

warnings(Peer) ->
    on(Peer, fun() ->
                     {ok, #{config := Keeper}} = logger:get_handler_config(?MODULE),
                     Keeper ! {get, self()},
                     receive {Keeper, Warnings} -> Warnings end
             end).

keeper(Warnings) ->
    receive
        {warning, Text} -> keeper([Text | Warnings]);
        {get, From} -> From ! {self(), Warnings}, keeper(Warnings)
    end.

%% Of a handler of `logger'.
log(#{level := warning, msg := {Format, Args}}, #{config := Keeper}) ->
    Keeper ! {warning, lists:flatten(io_lib:format(Format, Args))},
    ok;
log(_, _) -> ok.

knows(Node) ->
    lists:member(Node, [name(N) || N <- gen_server:call(global_name_server, get_known)]).

%% Returns when `global' of the node knows all others.
await_known(Peer) ->
    Known = fun() -> lists:sort(gen_server:call(global_name_server, get_known)) end,
    wait_until(fun() ->
                       {Nodes, Names} = on(Peer, fun() -> {lists:sort(nodes()), Known()} end),
                       length(Nodes) =:= 3 andalso Nodes =:= [name(N) || N <- Names]
                           orelse {Nodes, Names}
               end, ?TIMEOUT_MS).

name({Node, _Version}) -> Node;
name(Node) -> Node.

%% From now on, and until some time after the node has been stopped and goes on, `global' does not
%% run there: as on a host that is so busy that its turn does not come.
slow_after_stop(Peer) ->
    on(Peer, fun() ->
                     Self = self(),
                     spawn(fun() ->
                                   Global = whereis(global_name_server),
                                   true = erlang:suspend_process(Global),
                                   Self ! suspended,
                                   await_stop(erlang:monotonic_time(millisecond)),
                                   receive after ?SLOW_MS -> erlang:resume_process(Global) end
                           end),
                     receive suspended -> ok end
             end).

await_stop(Before) ->
    receive after 10 -> ok end,
    case erlang:monotonic_time(millisecond) of
        Now when Now - Before > 1000 -> ok;
        Now -> await_stop(Now)
    end.

keep_connecting(Peer, Node) ->
    on(Peer, fun() -> spawn(fun() -> connecting(Node) end), ok end).

connecting(Node) ->
    _ = net_kernel:connect_node(Node),
    receive after 20 -> connecting(Node) end.
