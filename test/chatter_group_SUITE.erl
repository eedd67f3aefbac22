%% Groups over real nodes: the session of the seed, restarts, partitions, how soon others see what
%% happens, and how little reaches who wants little.
-module(chatter_group_SUITE).
-behaviour(ct_suite).

-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_work, [on/2]).
-import(chatter_cluster, [wait_until/2]).

-define(TIMEOUT_MS, 10000).
-define(WHOLE, 16#ffffffff).
-define(G, <<"Group1">>).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [session, restart, partition, sixteen, interest, processes, subscriptions, server_crash,
     broadcast, not_started].

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

end_per_testcase(_Case, _Config) -> chatter_cluster:stop_all().

%% Given the session that the seed's author shows, expect the results he shows: the second node
%% joins, asks, serves a range, filters, and leaves.
session(_Config) ->
    [First, Second] = line(2),
    A = on(First, fun chatter_group:my_id/0),
    B = on(Second, fun chatter_group:my_id/0),
    ok = on(First, fun() -> chatter_group:join(?G) end),
    ok = on(Second, fun() -> chatter_group:join(?G) end),
    ok = on(Second, fun() -> chatter_group:join(?G, [A]) end),
    wait_until(fun() -> lists:sort([A, B]) =:= members(Second) end, ?TIMEOUT_MS),
    ?assertEqual([?G], on(Second, fun chatter_group:groups/0)),
    Added = on(Second, fun() -> chatter_group:add_item(?G, 16#f, 16#ff, 11223) end),
    Timed = fun(Id, Op, {From, To, Port}, Clock) ->
                    {timed_item, {item, Id, Op, From, To, Port}, {local_clock, Id, Clock}}
            end,
    Get = fun(Id, Clock) -> Timed(Id, get, {0, ?WHOLE, 0}, Clock) end,
    Item = Timed(B, add, {15, 255, 11223}, 2),
    ?assertEqual({ok, Item}, Added),
    %% By member and range. In the seed's session the first node has the lower address.
    Sorted = fun(OfA, OfB) -> if A < B -> OfA ++ OfB; true -> OfB ++ OfA end end,
    Topology = Sorted([Get(A, 0)], [Get(B, 1), Item]),
    ?assertEqual(Topology, on(Second, fun() -> chatter_group:topology(?G) end)),
    ?assertEqual([Item], on(Second, fun() -> chatter_group:topology(?G, add) end)),
    ?assertEqual([?G], on(Second, fun chatter_group:my_groups/0)),
    %% The other sees the same.
    wait_until(fun() -> Topology =:= on(First, fun() -> chatter_group:topology(?G) end) end,
               ?TIMEOUT_MS),
    ?assertEqual(ok, on(Second, fun() -> chatter_group:leave(?G) end)),
    ?assertEqual([A], members(Second)),
    Removed = [Timed(B, rmv, {0, ?WHOLE, 0}, 3), Timed(B, rmv, {15, 255, 11223}, 3)],
    Left = Sorted([Get(A, 0)], Removed),
    ?assertEqual(Left, on(Second, fun() -> chatter_group:topology(?G) end)),
    ?assertEqual([], on(Second, fun chatter_group:my_groups/0)),
    wait_until(fun() -> Left =:= on(First, fun() -> chatter_group:topology(?G) end) end,
               ?TIMEOUT_MS),
    ?assertEqual(Removed, on(First, fun() -> chatter_group:topology(?G, rmv) end)).

%% Given a node that left and was then started again, expect it to be seen when it joins: the
%% seed's stayed invisible, as its clocks began anew.
restart(_Config) ->
    [A, B] = line(2),
    [ok = on(N, fun() -> chatter_group:join(?G) end) || N <- [A, B]],
    {ok, _} = on(B, fun() -> chatter_group:add_item(?G, 0, 9, 1) end),
    [{ok, _} = on(B, fun() -> chatter_group:add_item(?G, N, N, 1) end) || N <- lists:seq(100, 120)],
    ok = on(B, fun() -> chatter_group:leave(?G) end),
    wait_until(fun() -> [node_of(A)] =:= nodes_in(A) end, ?TIMEOUT_MS),
    ok = chatter_cluster:kill9(B),
    B2 = begin_node(b, #{links => static, neighbours => [A]}),
    ok = on(B2, fun() -> chatter_group:join(?G) end),
    {ok, {timed_item, _, {local_clock, _, 1}}} =
        on(B2, fun() -> chatter_group:add_item(?G, 0, 9, 1) end),
    wait_until(fun() -> both([A, B2]) =:= nodes_in(A) end, ?TIMEOUT_MS),
    wait_until(fun() -> same([A, B2]) end, ?TIMEOUT_MS),
    ?assertMatch([{_, _, 1}], on(A, fun() -> chatter_group:owners(?G, 5) end)),
    ?assertEqual([], on(A, fun() -> chatter_group:owners(?G, 110) end)),
    %% And one that is killed as a member and comes back without a word is none.
    ok = chatter_cluster:kill9(B2),
    _ = begin_node(b, #{links => static, neighbours => [A]}),
    wait_until(fun() -> [node_of(A)] =:= nodes_in(A) end, ?TIMEOUT_MS).

%% Given a line that is cut in its middle while both sides say things, expect each side to see its
%% own, after a while without the other's, and all to see all of it when the line is whole again.
partition(_Config) ->
    [A, B, C, D] = All = line(4, [{group_leave_ms, 500}]),
    [ok = on(N, fun() -> chatter_group:join(?G) end) || N <- All],
    {ok, _} = on(D, fun() -> chatter_group:add_item(?G, 0, 9, 4) end),
    wait_until(fun() -> same(All) andalso both(All) =:= nodes_in(A) end, ?TIMEOUT_MS),
    [NodeB, NodeC] = [node_of(N) || N <- [B, C]],
    ok = on(B, fun() -> chatter:disconnect(NodeC) end),
    ok = on(C, fun() -> chatter:disconnect(NodeB) end),
    wait_until(fun() -> both([A, B]) =:= nodes_in(A) andalso both([C, D]) =:= nodes_in(D) end,
               ?TIMEOUT_MS),
    ok = on(B, fun() -> chatter_group:leave(?G) end),
    {ok, _} = on(A, fun() -> chatter_group:add_item(?G, 10, 19, 1) end),
    {ok, _} = on(D, fun() -> chatter_group:remove_item(?G, 0, 9, 4) end),
    {ok, _} = on(C, fun() -> chatter_group:add_item(?G, 5, 14, 3) end),
    ok = on(C, fun() -> chatter_group:join(<<"other">>) end),
    wait_until(fun() -> same([A, B]) andalso same([C, D]) end, ?TIMEOUT_MS),
    ok = on(B, fun() -> chatter:connect(NodeC) end),
    Healed = chatter_work:now_ms(),
    wait_until(fun() -> same(All) andalso both([A, C, D]) =:= nodes_in(B) end, ?TIMEOUT_MS),
    ct:pal("all equal ~b ms after the call to connect", [chatter_work:now_ms() - Healed]),
    ?assertEqual([[<<"Group1">>, <<"other">>]],
                 lists:usort([on(N, fun chatter_group:groups/0) || N <- All])),
    ?assertMatch(#{keys := 15, overlaps := [{10, 14, 2}], gaps := [{0, 4}, {20, ?WHOLE}]},
                 on(B, fun() -> chatter_group:coverage(?G) end)).

%% Given sixteen nodes, expect the fifteen others to see one that joins within a second, and one
%% that is killed to be gone within hold_ms + unreachable_ms + group_leave_ms.
sixteen(_Config) ->
    {Hold, Unreachable, Leave} = {1000, 500, 1000},
    Hub = begin_node(hub, [{group_leave_ms, Leave}], #{links => static}),
    Others = [begin_node(list_to_atom("n" ++ integer_to_list(I)), [{group_leave_ms, Leave}],
                         #{links => static, neighbours => [Hub]}) || I <- lists:seq(1, 15)],
    All = [Hub | Others],
    ok = chatter_cluster:await_routes(All, 60000),
    Last = lists:last(Others),
    Rest = lists:droplast(All),
    wait_until(fun() -> [] =:= lists:append([nodes_in(N) || N <- All]) end, ?TIMEOUT_MS),
    Node = node_of(Last),
    [ok = on(N, fun() -> watch_group(?G) end) || N <- Rest],
    Joined = now_us(),
    ok = on(Last, fun() -> chatter_group:join(?G) end),
    Seen = [seen_at(N, {join, Node}) - Joined || N <- Rest],
    ct:pal("15 others saw the join after ~b to ~b us", [lists:min(Seen), lists:max(Seen)]),
    ?assert(lists:max(Seen) =< 1000000),
    Killed = now_us(),
    ok = chatter_cluster:kill9(Last),
    Gone = [seen_at(N, {leave, Node}) - Killed || N <- Rest],
    ct:pal("a killed node was gone after ~b to ~b us", [lists:min(Gone), lists:max(Gone)]),
    ?assert(lists:max(Gone) =< 1000 * (Hold + Unreachable + Leave)).

%% Given 1,000 ranges all over the key space, expect a node that is interested in 1/64 of it to be
%% sent at most 1/16 of the bytes of one that wants all; and to know its part, not the rest.
interest(_Config) ->
    [A, Narrow, Wide] = line(3),
    Part = ?WHOLE div 64,
    ok = on(Narrow, fun() -> chatter_group:interest(?G, [{0, Part}]) end),
    ok = on(A, fun() -> chatter_group:join(?G) end),
    wait_until(fun() -> [node_of(A)] =:= nodes_in(Narrow) end, ?TIMEOUT_MS),
    wait_until(fun() -> [node_of(A)] =:= nodes_in(Wide) end, ?TIMEOUT_MS),
    Received = fun(N) -> maps:get(received_bytes, on(N, fun chatter_group:info/0)) end,
    Before = [Received(N) || N <- [Narrow, Wide]],
    Step = (?WHOLE + 1) div 1000,
    on(A, fun() ->
                  lists:foreach(
                    fun(N) ->
                            {ok, _} = chatter_group:add_item(?G, N * Step, (N + 1) * Step - 1, 1),
                            receive after 5 -> ok end
                    end, lists:seq(0, 999))
          end),
    wait_until(fun() -> #{gaps => [{1000 * Step, ?WHOLE}]}
                            =:= maps:with([gaps], on(Wide, fun() -> chatter_group:coverage(?G) end))
               end, ?TIMEOUT_MS),
    wait_until(fun() -> #{gaps => [], keys => Part + 1}
                            =:= maps:with([gaps, keys],
                                          on(Narrow, fun() -> chatter_group:coverage(?G) end))
               end, ?TIMEOUT_MS),
    [OfNarrow, OfWide] = lists:zipwith(fun(N, Was) -> Received(N) - Was end,
                                       [Narrow, Wide], Before),
    ct:pal("~b bytes to the narrow one, ~b to the other: 1/~.1f",
           [OfNarrow, OfWide, OfWide / OfNarrow]),
    ?assert(16 * OfNarrow =< OfWide),
    Owners = fun(Key) -> on(Narrow, fun() -> chatter_group:owners(?G, Key) end) end,
    ?assertEqual({error, not_interested}, Owners(Part + 1)),
    ?assertMatch([_], Owners(Part)).

%% Given processes in a group, expect the node to be a member while one of them lives.
processes(_Config) ->
    [A, B] = line(2),
    Pids = on(A, fun() ->
                         [begin
                              Pid = spawn(fun() -> receive stop -> ok end end),
                              ok = chatter_group:join(?G, Pid),
                              Pid
                          end || _ <- [1, 2]]
                 end),
    wait_until(fun() -> [node_of(A)] =:= nodes_in(B) end, ?TIMEOUT_MS),
    ?assertEqual(lists:sort(Pids), lists:sort(on(A, fun() -> chatter_group:local_members(?G) end))),
    on(A, fun() -> exit(hd(Pids), kill) end),
    wait_until(fun() -> tl(Pids) =:= on(A, fun() -> chatter_group:local_members(?G) end) end,
               ?TIMEOUT_MS),
    ?assertEqual([node_of(A)], nodes_in(B)),
    on(A, fun() -> hd(tl(Pids)) ! stop end),
    wait_until(fun() -> [] =:= nodes_in(B) end, ?TIMEOUT_MS),
    ?assertEqual([], on(A, fun chatter_group:my_groups/0)).

%% Given a subscriber, expect it to be told of all that happens in its group and nothing else,
%% until it wants no more.
subscriptions(_Config) ->
    [A, B] = line(2),
    Node = node_of(B),
    ok = on(A, fun() -> watch_group(?G) end),
    Steps = [{fun() -> chatter_group:join(?G) end, [{join, Node}]},
             {fun() -> chatter_group:join(<<"other">>) end, []},
             {fun() -> chatter_group:add_item(?G, 1, 2, 3) end, [{add, Node, {1, 2, 3}}]},
             {fun() -> chatter_group:add_item(?G, 1, 2, 4) end,
              [{remove, Node, {1, 2, 3}}, {add, Node, {1, 2, 4}}]},
             {fun() -> chatter_group:add_group(?G, <<"other">>) end,
              [{add_group, Node, <<"other">>}]},
             {fun() -> chatter_group:remove_group(?G, <<"other">>) end,
              [{remove_group, Node, <<"other">>}]},
             {fun() -> chatter_group:leave(?G) end, [{leave, Node}, {remove, Node, {1, 2, 4}}]}],
    lists:foldl(fun({Do, Expected}, Before) ->
                        _ = on(B, Do),
                        Told = Before ++ Expected,
                        wait_until(fun() -> Told =:= told(A) end, ?TIMEOUT_MS),
                        Told
                end, [], Steps).

%% Given a server that crashes, expect its successor to say and know all that it had, and to go on
%% telling its subscribers and watching its processes.
server_crash(_Config) ->
    [A, B] = line(2),
    Pid = on(A, fun() ->
                        {ok, _} = chatter_group:add_item(?G, 1, 2, 3),
                        Pid = spawn(fun() -> receive stop -> ok end end),
                        ok = chatter_group:join(<<"of Pid">>, Pid),
                        Pid
                end),
    ok = on(B, fun() -> chatter_group:join(?G) end),
    ok = on(A, fun() -> watch_group(?G) end),
    wait_until(fun() -> same([A, B]) andalso both([A, B]) =:= nodes_in(B) end, ?TIMEOUT_MS),
    on(A, fun() ->
                  Old = whereis(chatter_group_srv),
                  exit(Old, kill),
                  wait_until(fun() -> is_pid(whereis(chatter_group_srv))
                                          andalso whereis(chatter_group_srv) =/= Old end,
                             ?TIMEOUT_MS)
          end),
    wait_until(fun() -> same([A, B]) andalso both([A, B]) =:= nodes_in(A) end, ?TIMEOUT_MS),
    ?assertMatch([{_, _, 3}], on(B, fun() -> chatter_group:owners(?G, 1) end)),
    ok = on(B, fun() -> chatter_group:leave(?G) end),
    wait_until(fun() -> lists:member({leave, node_of(B)}, told(A)) end, ?TIMEOUT_MS),
    on(A, fun() -> exit(Pid, kill) end),
    wait_until(fun() -> [?G] =:= on(B, fun chatter_group:groups/0) end, ?TIMEOUT_MS).

%% Given a group with another in it, expect a broadcast to it to reach the members of both, and
%% nobody else.
broadcast(_Config) ->
    [A, B, C, D] = All = line(4),
    ok = on(A, fun() -> chatter_group:join(?G) end),
    ok = on(B, fun() -> chatter_group:add_group(?G, <<"inner">>) end),
    ok = on(C, fun() -> chatter_group:join(<<"inner">>) end),
    wait_until(fun() -> both([A, C]) =:= nodes_in(D) end, ?TIMEOUT_MS),
    [ok = on(N, fun() -> watch_broadcasts(news) end) || N <- All],
    ok = on(D, fun() -> chatter:broadcast({group, ?G}, {news, 1}) end),
    wait_until(fun() -> [[{news, 1}], [{news, 1}]] =:= [told(N) || N <- [A, C]] end, ?TIMEOUT_MS),
    %% What comes after it on the same way shows that nothing else is to come.
    ok = on(D, fun() -> chatter:broadcast([node_of(N) || N <- All], {news, 2}) end),
    wait_until(fun() -> [[{news, 1}, {news, 2}], [{news, 2}], [{news, 1}, {news, 2}], [{news, 2}]]
                            =:= [told(N) || N <- All] end, ?TIMEOUT_MS).

%% Given a node that is not alive, expect an error and no crash.
not_started(_Config) ->
    ?assertEqual({error, not_started}, chatter_group:join(?G)),
    ?assertEqual({error, not_started}, chatter_group:members(?G)),
    ?assertEqual({error, not_started}, chatter_group:subscribe(?G)).

%%% What nodes do

%% A process that keeps what it is told of a group, with the time.
watch_group(Group) -> watch(fun() -> chatter_group:subscribe(Group) end).

%% The same of broadcasts of a type.
watch_broadcasts(Type) -> watch(fun() -> chatter:subscribe(Type) end).

watch(Subscribe) ->
    Caller = self(),
    Pid = spawn(fun() ->
                        true = register(watcher, self()),
                        ok = Subscribe(),
                        Caller ! {self(), ready},
                        watching([])
                end),
    receive {Pid, ready} -> ok end.

watching(Told) ->
    receive
        {chatter_group, ?G, Event} -> watching([{Event, now_us()} | Told]);
        {chatter_broadcast, _, Message} -> watching([{Message, now_us()} | Told]);
        {From, told} -> From ! {told, lists:reverse(Told)}, watching(Told)
    end.

told_with_times(Peer) ->
    on(Peer, fun() -> watcher ! {self(), told}, receive {told, Told} -> Told end end).

told(Peer) -> [Event || {Event, _} <- told_with_times(Peer)].

%% When a node was told: all are on one host, and have one clock.
seen_at(Peer, Event) ->
    wait_until(fun() -> lists:keymember(Event, 1, told_with_times(Peer)) end, ?TIMEOUT_MS),
    {Event, At} = lists:keyfind(Event, 1, told_with_times(Peer)),
    At.

now_us() -> os:system_time(microsecond).

node_of(#{node := Node}) -> Node.

both(Peers) -> lists:sort([node_of(P) || P <- Peers]).

members(Peer) -> on(Peer, fun() -> chatter_group:members(?G) end).

nodes_in(Peer) -> lists:sort(on(Peer, fun() -> chatter_group:members(?G, [nodes]) end)).

same(Peers) ->
    1 =:= length(lists:usort([on(P, fun() ->
                                            [{G, chatter_group:topology(G, get),
                                              chatter_group:topology(G, add)}
                                             || G <- chatter_group:groups()]
                                    end) || P <- Peers])).

%%% Nodes

line(N) -> line(N, []).

line(N, Config) ->
    Names = [list_to_atom([$a + I]) || I <- lists:seq(0, N - 1)],
    Peers = lists:foldl(fun(Name, Peers) ->
                                [begin_node(Name, Config, #{links => static,
                                                            neighbours => lists:sublist(Peers, 1)})
                                 | Peers]
                        end, [], Names),
    ok = chatter_cluster:await_routes(Peers, ?TIMEOUT_MS),
    lists:reverse(Peers).

begin_node(Name, Opts) -> begin_node(Name, [], Opts).

begin_node(Name, Config, Opts) ->
    chatter_work:start(Name, Opts#{chatter => Config}).
