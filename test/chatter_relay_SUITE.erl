%% Nodes that reach each other through relays: every node has links to its configured
%% neighbours only.
-module(chatter_relay_SUITE).
-behaviour(ct_suite).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_work, [on/2, start/2]).
-import(chatter_cluster, [wait_until/2]).

-define(TIMEOUT_MS, 10000).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [{group, line}, five_in_a_row, star, second_relay, no_route, absent, relay_returns, metrics,
     neighbours_by_address, links_at_run_time, stopped_receiver].

groups() ->
    [{line, [], [end_to_end, views, figures, relay_is_no_party, sixty_four_mebibytes,
                 a_hundred_thousand_messages, both_ways_at_once]}].

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

init_per_group(line, Config) ->
    [{line, chatter_work:shared(fun() -> line(3) end)} | Config].

end_per_group(line, _Config) -> chatter_cluster:stop_all().

end_per_testcase(Case, _Config) ->
    case lists:member(Case, all()) of
        true -> chatter_cluster:stop_all();
        false -> ok
    end.

%%% A - R - B

%% Given two nodes with a relay between them, expect them to work as if linked.
end_to_end(Config) ->
    [A, _R, #{node := NodeB}] = ?config(line, Config),
    ?assertEqual(pong, on(A, fun() -> net_adm:ping(NodeB) end)),
    on(A, fun() ->
                  process_flag(trap_exit, true),
                  Pid = spawn_link(NodeB, fun() -> receive Reason -> exit(Reason) end end),
                  Ref = monitor(process, Pid),
                  Pid ! bye,
                  [receive M -> ok after 5000 -> error({missing, M}) end
                   || M <- [{'EXIT', Pid, bye}, {'DOWN', Ref, process, Pid, bye}]],
                  NodeB = erpc:call(NodeB, erlang, node, [])
          end).

%% Given the same, expect every node to see the same network, and the route through R.
views(Config) ->
    [#{node := NodeA} = A, #{node := NodeR} = R, #{node := NodeB} = B] = Nodes =
        ?config(line, Config),
    All = lists:sort([NodeA, NodeR, NodeB]),
    ?assertEqual({ok, [NodeR, NodeB]}, on(A, fun() -> chatter:route(NodeB) end)),
    ?assertEqual({ok, [NodeR, NodeA]}, on(B, fun() -> chatter:route(NodeA) end)),
    ?assertEqual({ok, [NodeA]}, on(A, fun() -> chatter:route(NodeA) end)),
    ?assertEqual({error, unreachable}, on(A, fun() -> chatter:route('no@where') end)),
    ?assertEqual([[NodeR], lists:sort([NodeA, NodeB]), [NodeR]],
                 [on(N, fun() -> lists:sort(chatter:neighbours()) end) || N <- Nodes]),
    [?assertEqual(All -- [Node], on(N, fun() -> lists:sort(chatter:nodes()) end))
     || #{node := Node} = N <- Nodes],
    Edges = lists:sort([{NodeA, NodeR}, {NodeR, NodeA}, {NodeR, NodeB}, {NodeB, NodeR}]),
    [wait_until(fun() ->
                        #{nodes := Seen, edges := Es} = Whole = on(N, fun chatter:topology/0),
                        {All, Edges} =:= {Seen, [{X, Y} || {X, Y, Metric} <- Es, Metric > 0]}
                            orelse Whole
                end, ?TIMEOUT_MS) || N <- [A, R, B]].

%% Given the same, expect links/0 and info/0,1 to have the figures that the manual names.
figures(Config) ->
    [A, #{node := NodeR} = R, #{node := NodeB} = B] = ?config(line, Config),
    chatter_work:connect(A, B),
    [#{peer := NodeR, state := up, remote := Remote, dialled := Dialled, metric := Metric} = Link] =
        on(A, fun chatter:links/0),
    ?assert(is_binary(Remote) andalso is_boolean(Dialled) andalso Metric > 0),
    Counters = [bytes_in, bytes_out, packets_in, packets_out, relayed, blocked, queued_own,
                queued_transit, dropped, marked, since_ms],
    [?assert(is_integer(maps:get(Key, Link))) || Key <- Counters],
    wait_until(fun() -> [#{rtt_us := Rtt}] = on(A, fun chatter:links/0), is_integer(Rtt) end,
               ?TIMEOUT_MS),
    ?assertEqual(2, length(on(R, fun chatter:links/0))),
    Name = atom_to_binary(maps:get(node, A)),
    ?assertMatch(#{name := Name, links := 1, channels := 1, relay_drops := 0, rescued := 0,
                   refused_connections := _, evicted_handshakes := _, lsdb_size := 3},
                 on(A, fun chatter:info/0)),
    ?assertMatch(#{node := NodeB, reachable := true, connected := true, route := [NodeR, NodeB],
                   channels := [#{state := open, retransmits := _, srtt_us := _, window := _,
                                  window_cuts := _, marks_out := 0, marks_in := 0}]},
                 on(A, fun() -> chatter:info(NodeB) end)),
    ?assertMatch(#{reachable := true, connected := false, channels := []},
                 on(A, fun() -> chatter:info(NodeR) end)),
    ?assertMatch(#{reachable := false, route := []}, on(A, fun() -> chatter:info('no@where') end)).

%% Given traffic from A to B, expect R to carry it with no connection and no channel.
relay_is_no_party(Config) ->
    [A, R, #{node := NodeB} = B] = ?config(line, Config),
    Relayed = fun() -> lists:sum([N || #{relayed := N} <- on(R, fun chatter:links/0)]) end,
    Before = Relayed(),
    chatter_work:connect(A, B),
    [NodeB = on(A, fun() -> erpc:call(NodeB, erlang, node, []) end) || _ <- lists:seq(1, 10)],
    wait_until(fun() -> Relayed() - Before >= 20 end, ?TIMEOUT_MS),
    ?assertEqual({[], 0}, {on(R, fun() -> nodes(connected) end), chatter_work:channels(R)}).

%% Given a message of 64 MiB over the relay, expect it back whole.
sixty_four_mebibytes(Config) ->
    [A, _R, #{node := NodeB}] = ?config(line, Config),
    on(A, fun() ->
                  Data = chatter_work:pattern(64 bsl 20),
                  Echo = spawn_link(NodeB, fun() -> receive {To, Got} -> To ! {got, Got} end end),
                  Echo ! {self(), Data},
                  receive {got, Data} -> ok after 20000 -> error(not_arrived) end
          end).

%% Given 100,000 small messages from ten processes, expect all, in order.
a_hundred_thousand_messages(Config) ->
    [A, _R, #{node := NodeB} = B] = ?config(line, Config),
    ok = chatter_work:sink(B, many),
    _ = chatter_work:flood(A, {many, NodeB}, {10, 10000}, [0, 100]),
    chatter_work:await_seen({B, many}, 100000, 30000).

%% Given a flood of mixed sizes in both directions at once, expect all, in order.
both_ways_at_once(Config) ->
    [#{node := NodeA} = A, _R, #{node := NodeB} = B] = ?config(line, Config),
    [ok = chatter_work:sink(N, crossing) || N <- [A, B]],
    Sizes = [10, 100000, 0, 3000, 70000],
    _ = chatter_work:flood(A, {crossing, NodeB}, {8, 400}, Sizes),
    _ = chatter_work:flood(B, {crossing, NodeA}, {8, 400}, Sizes),
    [chatter_work:await_seen({N, crossing}, 8 * 400, 30000) || N <- [A, B]].

%%% Other shapes

%% Given five nodes in a row, expect the ends to reach each other over the three between.
five_in_a_row(_Config) ->
    [A, _, _, _, #{node := NodeE} = E] = Nodes = line(5),
    Names = [Name || #{node := Name} <- tl(Nodes)],
    ?assertEqual({ok, Names}, on(A, fun() -> chatter:route(NodeE) end)),
    chatter_work:connect(A, E),
    ok = chatter_work:sink(E, far),
    _ = chatter_work:flood(A, {far, NodeE}, {4, 2000}, [100, 0, 20000]),
    chatter_work:await_seen({E, far}, 4 * 2000, 30000).

%% Given eight nodes around one, expect every one to call every other, and the middle to be
%% connected to none.
star(_Config) ->
    [Centre | Leaves] = chatter_cluster:star(9, tests(#{args => ["-connect_all", "false"]})),
    Names = [Name || #{node := Name} <- Leaves],
    [?assertEqual([{ok, N} || N <- Names],
                  on(Leaf, fun() -> erpc:multicall(Names, erlang, node, [], 20000) end))
     || Leaf <- Leaves],
    ?assertEqual([], on(Centre, fun() -> nodes(connected) end)),
    [?assertEqual(lists:delete(Name, Names), on(L, fun() -> lists:sort(nodes()) end))
     || #{node := Name} = L <- Leaves, lists:sort(Names) =:= Names].

%%% Routes that come and go

%% Given two relays and the one in use killed under load, expect nothing lost, repeated or
%% out of order, and no nodedown.
second_relay(_Config) ->
    [_, _] = Relays = [start(N, #{links => static}) || N <- [r1, r2]],
    [A, #{node := NodeB} = B] =
        [start(N, #{links => static, neighbours => Relays}) || N <- [a, b]],
    ok = chatter_cluster:await_routes([A, B | Relays], ?TIMEOUT_MS),
    chatter_work:connect(A, B),
    ok = chatter_work:watch(A),
    ok = chatter_work:watch(B),
    ok = chatter_work:sink(B, steady),
    {Senders, Each} = {10, 20000},
    _ = chatter_work:flood(A, {steady, NodeB}, {Senders, Each}, [100, 1000, 0, 30000]),
    wait_until(fun() -> element(1, chatter_work:seen(B, steady)) > 5000 end, ?TIMEOUT_MS),
    {ok, [Used, NodeB]} = on(A, fun() -> chatter:route(NodeB) end),
    [Relay] = [R || #{node := Node} = R <- Relays, Node =:= Used],
    ok = chatter_cluster:kill9(Relay),
    {AtKill, []} = chatter_work:seen(B, steady),
    ct:pal("~b of ~b messages had arrived when the relay was gone", [AtKill, Senders * Each]),
    ?assert(AtKill < Senders * Each),
    chatter_work:await_seen({B, steady}, Senders * Each, 40000),
    ?assertEqual([], [E || N <- [A, B], {_, Node, _} = E <- chatter_work:events(N),
                           lists:member(Node, [NodeB, maps:get(node, A)])]),
    ?assertNotEqual({ok, [Used, NodeB]}, on(A, fun() -> chatter:route(NodeB) end)).

%% Given the only relay killed, expect one nodedown at each end, in bounded time.
no_route(_Config) ->
    [#{node := NodeA} = A, R, #{node := NodeB} = B] = line(3),
    chatter_work:connect(A, B),
    [ok = chatter_work:watch(N) || N <- [A, B]],
    ok = chatter_cluster:kill9(R),
    Gone = chatter_work:now_ms(),
    Downs = [chatter_work:await_down(A, NodeB, ?TIMEOUT_MS),
             chatter_work:await_down(B, NodeA, ?TIMEOUT_MS)],
    ct:pal("nodedown ~w ms after the relay was gone", [[Down - Gone || Down <- Downs]]),
    ?assert(lists:max(Downs) - Gone =< 500 + 500),
    [wait_until(fun() -> 0 =:= chatter_work:channels(N) end, ?TIMEOUT_MS) || N <- [A, B]],
    ?assertMatch([{nodedown, NodeB, _}], chatter_work:events(A)),
    ?assertMatch([{nodedown, NodeA, _}], chatter_work:events(B)),
    Before = chatter_work:now_ms(),
    ?assertEqual(pang, on(A, fun() -> net_adm:ping(NodeB) end)),
    ?assert(chatter_work:now_ms() - Before < 2000).

%% Given a node that is not there, expect one wait for it and then none for a while; and when it is
%% started, expect it to be found.
absent(_Config) ->
    [A, R, _B] = line(3),
    NodeD = chatter_cluster:node_name(d),
    Before = chatter_work:now_ms(),
    ?assertEqual([pang], on(A, fun() ->
                                       lists:usort([net_adm:ping(NodeD) || _ <- lists:seq(1, 100)])
                               end)),
    ?assert(chatter_work:now_ms() - Before < 5000), % 50 s if each were a wait
    D = start(d, #{neighbours => [R], links => static}),
    chatter_work:connect(A, D).

%% Given the relay started again, expect the ends to meet again by themselves.
relay_returns(_Config) ->
    [A, R, #{node := NodeB} = B] = line(3),
    chatter_work:connect(A, B),
    ok = chatter_work:watch(A),
    ok = chatter_cluster:kill9(R),
    _ = chatter_work:await_down(A, NodeB, ?TIMEOUT_MS),
    _ = start(n2, #{links => static, neighbours => [n1, n3]}),
    wait_until(fun() -> pong =:= on(A, fun() -> net_adm:ping(NodeB) end) end, 15000),
    chatter_work:connect(A, B).

%% Given two relays and metrics, expect the route over the cheaper one, and over the other when
%% the metric changes at run time.
metrics(_Config) ->
    [#{node := R1}, #{node := R2}] = Relays = [start(N, #{links => static}) || N <- [r1, r2]],
    [A, #{node := NodeB} = B] =
        [start(N, #{links => static, neighbours => [{r1, 10}, {r2, 1000}]}) || N <- [a, b]],
    ok = chatter_cluster:await_routes([A, B | Relays], ?TIMEOUT_MS),
    Over = fun(R) -> wait_until(fun() -> case on(A, fun() -> chatter:route(NodeB) end) of
                                             {ok, [R, NodeB]} -> true;
                                             Other -> Other
                                         end end, ?TIMEOUT_MS)
           end,
    Over(R1),
    chatter_work:connect(A, B),
    ok = on(A, fun() -> chatter:connect({R1, 5000}) end),
    Over(R2),
    ?assertEqual(NodeB, on(A, fun() -> erpc:call(NodeB, erlang, node, []) end)).

%% Given a relay by host and port, expect its links to come up, and its name to be learnt.
neighbours_by_address(_Config) ->
    Port = chatter_cluster:free_port(),
    #{node := NodeR} = R = start(r, #{links => static, chatter => [{my_port, Port}]}),
    [A, B] = [start(N, #{links => static, neighbours => [{Host, Port}]})
              || {N, Host} <- [{a, "127.0.0.1"}, {b, "localhost"}]],
    ok = chatter_cluster:await_routes([A, R, B], ?TIMEOUT_MS),
    chatter_work:connect(A, B),
    ?assertEqual([NodeR], on(A, fun chatter:neighbours/0)).

%% Given connect/1 and disconnect/1 at run time, expect the link to come, to stay while wanted,
%% and to go; and nonsense to be refused.
links_at_run_time(_Config) ->
    [#{node := NodeA} = A, #{node := NodeB} = B] = [start(N, #{links => static}) || N <- [a, b]],
    ?assertEqual(pang, on(A, fun() -> net_adm:ping(NodeB) end)),
    [begin
         ok = on(A, fun() -> chatter:connect(NodeB) end),
         ok = chatter_cluster:await_routes([A, B], ?TIMEOUT_MS),
         chatter_work:connect(A, B),
         ok = on(A, fun() -> chatter:disconnect(NodeB) end),
         wait_until(fun() -> [] =:= on(A, fun chatter:neighbours/0) end, ?TIMEOUT_MS),
         wait_until(fun() -> [] =:= on(B, fun() -> nodes(connected) end) end, ?TIMEOUT_MS)
     end || _ <- [1, 2, 3]],
    ok = on(A, fun() -> chatter:connect(NodeB) end),
    ok = chatter_cluster:await_routes([A, B], ?TIMEOUT_MS),
    %% The other end drops it: who wants it dials again.
    ok = on(B, fun() -> chatter:disconnect(NodeA) end),
    wait_until(fun() -> [NodeB] =:= on(A, fun chatter:neighbours/0)
                            andalso [NodeA] =:= on(B, fun chatter:neighbours/0) end, ?TIMEOUT_MS),
    [?assertEqual({error, badarg}, on(A, fun() -> chatter:connect(X) end))
     || X <- [nobody, 17, {"host", 0}, {"host", 65536}, {'a@b', 0}, {'a@b', 65536}, "a@b"]].

%%% Bounds

%% Given a receiver that stops (SIGSTOP), with a link that is held for long, expect the relay's
%% and the sender's memory to stay bounded, and all to arrive when it goes on.
stopped_receiver(_Config) ->
    [A, R, #{node := NodeB} = B] = line(3, #{chatter => [{hold_ms, 60000}]}),
    chatter_work:connect(A, B),
    ok = chatter_work:sink(B, stopped),
    Before = [chatter_work:rss(N) || N <- [A, R]],
    ok = chatter_cluster:freeze(B),
    Senders = chatter_work:flood(A, {stopped, NodeB}, {8, 2000}, [16000]), % 256 MB in all
    wait_until(fun() -> on(A, fun() -> lists:all(fun(P) -> {status, suspended} =:=
                                                     process_info(P, status) end, Senders) end)
               end, 20000),
    Grown = [chatter_work:rss(N) - Was || {N, Was} <- lists:zip([A, R], Before)],
    ct:pal("memory of sender and relay grew by ~w MiB", [Grown]),
    ?assert(lists:max(Grown) < 100),
    ok = chatter_cluster:thaw(B),
    chatter_work:await_seen({B, stopped}, 8 * 2000, 40000).

%%% Helpers

line(N) -> line(N, #{}).

line(N, Opts) -> chatter_cluster:line(N, tests(Opts)).

tests(Opts) ->
    Opts#{args => ["-pa", filename:dirname(code:which(?MODULE)) | maps:get(args, Opts, [])]}.
