%% Groups without nodes: properties (test/chatter_group_props.erl) and a large cluster in virtual
%% time. CHATTER_SEED=... runs them again as they were.
-module(chatter_group_props_SUITE).
-behaviour(ct_suite).

-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-define(WHOLE, 16#ffffffff).

suite() -> [{timetrap, {minutes, 15}}].

all() ->
    [merge, wire, golden, hostile, nested, coverage, choose, histories,
     limits, commands, nested_members, removed_in_next_life,
     away_and_back, forgotten, word_lost, narrow, many_nodes].

merge(_Config) -> holds(prop_merge).
wire(_Config) -> holds(prop_wire).
hostile(_Config) -> holds(prop_hostile).
nested(_Config) -> holds(prop_nested).
coverage(_Config) -> holds(prop_coverage).
choose(_Config) -> holds(prop_choose).
histories(_Config) -> holds(prop_histories).

%% The vectors of docs/groups.md, both ways.
golden(_Config) ->
    {ok, Page} = file:read_file(filename:join([chatter_cluster:root(), "docs", "groups.md"])),
    NetId = {net_id, {192, 168, 1, 100}, 29999},
    Life = fun(Entries) -> {<<"a@host">>, 1700000000000000, NetId, [{<<"Group1">>, Entries}]} end,
    Lives = fun(Entries) -> {lives, <<"a@host">>, [], [Life(Entries)], [], false} end,
    Messages =
        [{"add", Lives([{get, {1, 1, {live, {true, all}}}},
                        {{add, 15, 255}, {2, 2, {live, 11223}}}])},
         {"leave", Lives([{get, {3, 3, {dead, {false, all}}}},
                          {{add, 15, 255}, {4, 3, {dead, 11223}}}])},
         {"interest", {lives, <<"b@host">>, [{<<"Group1">>, [{0, 16#3ffffff}]}], [], [], false}},
         {"nodes", {nodes, <<"a@host">>, [], 4,
                    [{<<"b@host">>, 1700000000000001, 16#fedcba98765432}]}}],
    lists:foreach(fun({Name, Message}) ->
                          {match, [Hex]} = re:run(Page, ["^", Name, ": ([0-9a-f]+)$"],
                                                  [multiline, {capture, [1], binary}]),
                          Bytes = binary:decode_hex(Hex),
                          ?assertEqual(Bytes, chatter_group_wire:encode(Message)),
                          ?assertEqual({ok, Message}, chatter_group_wire:decode(Bytes))
                  end, Messages).

%% A property, as often as `make test' tries it.
holds(Name) ->
    {Name, Count} = lists:keyfind(Name, 1, chatter_group_props:properties()),
    Seed = chatter_group_props:seed(),
    ct:pal("CHATTER_SEED=~b", [Seed]),
    ?assert(chatter_group_props:check(Name, {Count, Seed})).

%%% Commands

%% Given a node at each of its limits, expect an error that names the limit, and nothing changed.
limits(_Config) ->
    Limits = #{max_groups => 2, max_members => 2, max_items => 2, max_name => 5},
    World0 = chatter_group_world:new([<<"a">>, <<"b">>, <<"c">>], 1, Limits),
    World1 = ok([{<<"a">>, {join, <<"12345">>, node}}, {<<"b">>, {join, <<"12345">>, node}},
                 {<<"a">>, {add_item, <<"12345">>, 0, 1, 1}},
                 {<<"a">>, {add_item, <<"12345">>, 1, 2, 1}},
                 {<<"a">>, {join, <<"2">>, node}}], World0),
    World = chatter_group_world:run(100, World1),
    Seen = chatter_group_world:seen(<<"c">>, World),
    Refused = fun(Id, Command) ->
                      {{error, Reason}, Same} = chatter_group_world:command(Id, Command, World),
                      ?assertEqual(World, Same),
                      Reason
              end,
    ?assertEqual({limit, group_max_members, 2}, Refused(<<"c">>, {join, <<"12345">>, node})),
    ?assertEqual({limit, group_max_groups, 2}, Refused(<<"c">>, {join, <<"3">>, node})),
    ?assertEqual({limit, group_max_groups, 2}, Refused(<<"a">>, {add_group, <<"3">>, <<"2">>})),
    ?assertEqual({limit, group_max_items, 2},
                 Refused(<<"a">>, {add_item, <<"12345">>, 2, 3, 1})),
    ?assertEqual({limit, group_max_items, 2}, Refused(<<"a">>, {add_group, <<"12345">>, <<"2">>})),
    [?assertEqual(bad_name, Refused(<<"a">>, {join, Name, node}))
     || Name <- [<<>>, <<"123456">>, "name", name, <<1:7>>]],
    [?assertEqual(bad_range, Refused(<<"a">>, {add_item, <<"2">>, From, To, 1}))
     || {From, To} <- [{2, 1}, {-1, 1}, {0, ?WHOLE + 1}, {0.0, 1}, {a, b}]],
    [?assertEqual(bad_port, Refused(<<"a">>, {add_item, <<"2">>, 0, 1, Port}))
     || Port <- [-1, 65536, port]],
    [?assertEqual(bad_range, Refused(<<"a">>, {interest, <<"2">>, Ranges}))
     || Ranges <- [none, [1], [{2, 1}], [{0, 1} | x]]],
    ?assertEqual({limit, ranges, 64},
                 Refused(<<"a">>, {interest, <<"2">>, [{N, N} || N <- lists:seq(0, 128, 2)]})),
    ?assertEqual(no_item, Refused(<<"a">>, {remove_item, <<"12345">>, 0, 1, 2})),
    ?assertEqual(no_group, Refused(<<"a">>, {remove_group, <<"12345">>, <<"2">>})),
    ?assertEqual(Seen, chatter_group_world:seen(<<"c">>, chatter_group_world:run(100, World))),
    %% What is there already takes no more room.
    _ = ok([{<<"a">>, {add_item, <<"12345">>, 0, 1, 9}}, {<<"a">>, {join, <<"2">>, node}}], World).

%% Given processes and the node itself in a group, expect it to be a member while one of them is,
%% and its ranges to end with its own membership.
commands(_Config) ->
    World0 = chatter_group_world:new([<<"a">>, <<"b">>], 1),
    Steps = [{{join, <<"g">>, pid1}, true}, {{join, <<"g">>, pid2}, true},
             {{leave, <<"g">>, pid1}, true}, {{leave, <<"g">>, node}, true},
             {{leave, <<"g">>, pid1}, true}, {{leave, <<"g">>, pid2}, false},
             {{join, <<"g">>, node}, true}, {{join, <<"g">>, pid1}, true},
             {{leave, <<"g">>, node}, true}, {{leave, <<"g">>, pid1}, false}],
    Members = fun(World) ->
                      View = chatter_group_core:view(chatter_group_world:core(<<"b">>, World)),
                      {chatter_group_view:members(<<"g">>, View),
                       chatter_group_view:serving(<<"g">>, View)}
              end,
    lists:foldl(fun({Command, Member}, World) ->
                        World1 = chatter_group_world:run(100, ok([{<<"a">>, Command}], World)),
                        ?assertEqual({Command, {[<<"a">> || Member], []}},
                                     {Command, Members(World1)}),
                        World1
                end, World0, Steps),
    World1 = ok([{<<"a">>, {add_item, <<"g">>, 0, 5, 1}}], World0),
    World2 = chatter_group_world:run(100, ok([{<<"a">>, {join, <<"g">>, pid1}}], World1)),
    ?assertEqual({[<<"a">>], [{<<"a">>, {0, 5}, 1}]}, Members(World2)),
    World3 = chatter_group_world:run(100, ok([{<<"a">>, {leave, <<"g">>, node}}], World2)),
    ?assertEqual({[<<"a">>], []}, Members(World3)).

%% Given groups in groups, expect the members of the inner in the outer, no cycle, and of two
%% statements that close one together the same to be ignored by all.
nested_members(_Config) ->
    Ids = [<<"a">>, <<"b">>, <<"c">>],
    World0 = chatter_group_world:new(Ids, 1),
    World1 = ok([{<<"a">>, {join, <<"in">>, node}}, {<<"b">>, {join, <<"out">>, node}},
                 {<<"c">>, {add_group, <<"out">>, <<"mid">>}}], World0),
    World2 = chatter_group_world:run(100, World1),
    {{error, cycle}, _} = chatter_group_world:command(<<"a">>, {add_group, <<"mid">>, <<"out">>},
                                                      World2),
    {{error, cycle}, _} = chatter_group_world:command(<<"a">>, {add_group, <<"g">>, <<"g">>},
                                                      World2),
    Mid = {<<"a">>, {add_group, <<"mid">>, <<"in">>}},
    World3 = chatter_group_world:run(100, ok([Mid], World2)),
    [?assertEqual([[<<"a">>, <<"b">>], [<<"a">>], [<<"a">>]],
                  [members(Group, Id, World3) || Group <- [<<"out">>, <<"mid">>, <<"in">>]])
     || Id <- Ids],
    %% Nobody hears the other.
    World4 = ok([{<<"a">>, {add_group, <<"in">>, <<"x">>}},
                 {<<"b">>, {add_group, <<"x">>, <<"out">>}}], World3),
    World5 = chatter_group_world:run(100, World4),
    [Edges | Others] = [chatter_group_view:edges(
                          chatter_group_core:view(chatter_group_world:core(Id, World5)))
                        || Id <- Ids],
    ?assertEqual([Edges, Edges], Others),
    ?assertEqual(3, length(lists:append(maps:values(Edges)))),
    ?assertEqual([<<"a">>, <<"b">>], members(<<"out">>, <<"c">>, World5)),
    %% When what stood against it is taken back, it counts.
    Back = {<<"c">>, {remove_group, <<"out">>, <<"mid">>}},
    World6 = chatter_group_world:run(100, ok([Back], World5)),
    [?assertEqual([[<<"b">>], [<<"b">>], [<<"a">>, <<"b">>]],
                  [members(Group, Id, World6) || Group <- [<<"out">>, <<"x">>, <<"mid">>]])
     || Id <- Ids].

%%% Nodes that come and go

%% Given a node that the network has lost, expect it to be a member until it has been away for
%% leave_ms, and to be back with all it has when the network has it again; if it was started anew
%% meanwhile, with nothing.
away_and_back(_Config) ->
    World0 = chatter_group_world:new([<<"a">>, <<"b">>], 1, #{leave_ms => 2000}),
    World1 = ok([{<<"a">>, {add_item, <<"g">>, 0, 5, 1}}], World0),
    World2 = chatter_group_world:partition(#{<<"a">> => 1}, chatter_group_world:run(100, World1)),
    World3 = chatter_group_world:run(1999, World2),
    ?assertEqual([<<"a">>], members(<<"g">>, <<"b">>, World3)),
    World4 = chatter_group_world:run(1, World3),
    ?assertEqual(#{}, chatter_group_world:seen(<<"b">>, World4)),
    World5 = ok([{<<"a">>, {add_item, <<"g">>, 6, 9, 1}}], chatter_group_world:run(600000, World4)),
    World6 = chatter_group_world:heal(World5),
    ?assertEqual([<<"a">>], members(<<"g">>, <<"b">>, World6)),
    {Passed, World7} = chatter_group_world:settle(10, 1000, World6),
    ?assert(Passed =< 1000),
    %% So quickly that nobody has noticed it was away.
    {Again, World8} = chatter_group_world:settle(10, 1000,
                                                 chatter_group_world:restart(<<"a">>, 1, World7)),
    ?assert(Again =< 1000),
    ?assertEqual(#{}, chatter_group_world:seen(<<"b">>, World8)).

%% Given a node that is restarted and then adds and removes what it had in its former life, all of
%% it heard of as one, expect that to be collected. (Seed 20261121 of prop_histories.)
removed_in_next_life(_Config) ->
    World0 = chatter_group_world:new([<<"a">>, <<"b">>, <<"c">>], 1, #{collect_ms => 1000}),
    World1 = chatter_group_world:run(100, ok([{<<"b">>, {add_item, <<"g">>, 0, 30, 0}}], World0)),
    World2 = ok([{<<"b">>, {add_item, <<"g">>, 0, 30, 0}},
                 {<<"b">>, {remove_item, <<"g">>, 0, 30, 0}}, {<<"b">>, {leave, <<"g">>, node}}],
                chatter_group_world:restart(<<"b">>, 1, World1)),
    ?assert(chatter_group_world:is_empty(chatter_group_world:run(5000, World2))).

%% Given a node that does not come back, expect all that is known of it to be forgotten in the end.
forgotten(_Config) ->
    Options = #{leave_ms => 1000, forget_ms => 10000},
    World0 = chatter_group_world:new([<<"a">>, <<"b">>, <<"c">>], 1, Options),
    World1 = chatter_group_world:run(100, ok([{<<"a">>, {add_item, <<"g">>, 0, 5, 1}}], World0)),
    World2 = chatter_group_world:run(3000, chatter_group_world:kill(<<"a">>, World1)),
    Known = fun(World) ->
                    [lists:sort(chatter_group_state:ids(
                                  chatter_group_core:state(chatter_group_world:core(Id, World))))
                     || Id <- [<<"b">>, <<"c">>]]
            end,
    Three = [<<"a">>, <<"b">>, <<"c">>],
    ?assertEqual([Three, Three], Known(World2)),
    ?assertEqual([tl(Three), tl(Three)], Known(chatter_group_world:run(15000, World2))).

%% Given nodes that know of no group, and a join of which no word arrives, expect all to see it
%% within 5 s all the same: they ask. (Seed 2527931 of prop_histories: one waited to be asked.)
word_lost(_Config) ->
    Ids = [<<"n", ($0 + I)>> || I <- lists:seq(1, 8)],
    Late = [{Seed, Passed}
            || Seed <- lists:seq(1, 300),
               {Passed, _} <- [word_lost(Ids, Seed)],
               not is_integer(Passed)],
    ?assertEqual([], Late).

word_lost(Ids, Seed) ->
    World0 = chatter_group_world:run(3000, chatter_group_world:new(Ids, Seed)),
    World1 = ok([{hd(Ids), {join, <<"g">>, node}}], chatter_group_world:lose({1000, 0}, World0)),
    World2 = chatter_group_world:lose({0, 0}, chatter_group_world:run(100, World1)),
    chatter_group_world:settle(250, 5000, World2).

%% Given 1,000 ranges that come and go all over the key space, expect a node that is interested in
%% 1/64 of it to be sent at most 1/16 of the bytes of one that wants all, and to see its part.
narrow(_Config) ->
    Ids = [<<"a">>, <<"all">>, <<"narrow">>],
    World0 = chatter_group_world:new(Ids, 1),
    World1 = ok([{<<"narrow">>, {interest, <<"g">>, [{0, ?WHOLE div 64}]}}], World0),
    World2 = chatter_group_world:run(1000, World1),
    Step = (?WHOLE + 1) div 1000,
    Before = [chatter_group_world:bytes_to(Id, World2) || Id <- tl(Ids)],
    World3 = lists:foldl(fun(N, World) ->
                                 Item = {add_item, <<"g">>, N * Step, (N + 1) * Step - 1, 1},
                                 chatter_group_world:run(20, ok([{<<"a">>, Item}], World))
                         end, World2, lists:seq(0, 999)),
    After = [chatter_group_world:bytes_to(Id, World3) || Id <- tl(Ids)],
    ?assert(chatter_group_world:equal(World3)),
    [All, Narrow] = lists:zipwith(fun(A, B) -> A - B end, After, Before),
    ct:pal("~b bytes to who wants all, ~b to who wants 1/64: 1/~.1f", [All, Narrow, All / Narrow]),
    ?assert(Narrow * 16 =< All),
    %% Who wants more again gets it.
    {Passed, _} = chatter_group_world:settle(
                    100, 5000, ok([{<<"narrow">>, {interest, <<"g">>, all}}], World3)),
    ?assert(is_integer(Passed)).

%% Given 200 nodes in 50 groups of which 20 % are killed or started in each virtual minute, messages
%% lost and doubled meanwhile, expect all views to be equal within 5 virtual seconds after that.
many_nodes(_Config) ->
    Seed = chatter_group_props:seed(),
    ct:pal("CHATTER_SEED=~b", [Seed]),
    _ = rand:seed(exsss, Seed),
    Ids = [iolist_to_binary(io_lib:format("n~3..0b@host", [I])) || I <- lists:seq(1, 200)],
    World0 = chatter_group_world:run(
               2000, chatter_group_world:new(Ids, Seed, #{leave_ms => 1000})),
    World1 = lists:foldl(fun(Id, World) -> joins(Id, World) end,
                         chatter_group_world:lose({10, 10}, World0), Ids),
    %% Two minutes: every 1.5 s one of the nodes that are there goes, or one of those that are not
    %% comes.
    World2 = lists:foldl(fun(_, World) -> churn(Ids, World) end, World1, lists:seq(1, 80)),
    {Passed, World3} = chatter_group_world:settle(
                         250, 5000, chatter_group_world:lose({0, 0}, World2)),
    Footprints = chatter_group_world:footprint(World3),
    ct:pal("equal after ~w ms; ~b nodes; ~b bytes sent to a node in ~b s; in memory {bytes, nodes, "
           "entries} ~p",
           [Passed, length(chatter_group_world:ids(World3)),
            chatter_group_world:bytes_to(hd(chatter_group_world:ids(World3)), World3),
            chatter_group_world:now(World3) div 1000, lists:max(Footprints)]),
    ?assert(is_integer(Passed)).

churn(Ids, World) ->
    Up = chatter_group_world:ids(World),
    World1 = case rand:uniform(2) =:= 1 orelse length(Up) =:= length(Ids) of
                 true -> chatter_group_world:kill(one_of(Up), World);
                 false ->
                     Id = one_of(Ids -- Up),
                     chatter_group_world:run(1500, joins(Id, chatter_group_world:start(Id, World)))
             end,
    Id1 = one_of(chatter_group_world:ids(World1)),
    joins(Id1, World1).

joins(Id, World) ->
    lists:foldl(fun(_, W) ->
                        Group = <<"group", (integer_to_binary(rand:uniform(50)))/binary>>,
                        From = rand:uniform(?WHOLE div 2),
                        Command = case rand:uniform(4) of
                                      1 -> {leave, Group, node};
                                      2 -> {join, Group, node};
                                      _ -> {add_item, Group, From, 2 * From, rand:uniform(65535)}
                                  end,
                        ok([{Id, Command}], W)
                end, World, [1, 2, 3]).

one_of(List) -> lists:nth(rand:uniform(length(List)), List).

%%% Helpers

ok(Commands, World) ->
    lists:foldl(fun({Id, Command}, W) ->
                        {{ok, _}, W1} = chatter_group_world:command(Id, Command, W),
                        W1
                end, World, Commands).

members(Group, Id, World) ->
    chatter_group_view:members(Group, chatter_group_core:view(chatter_group_world:core(Id, World))).
