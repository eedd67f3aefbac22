%% The nemesis in its short form, and whether its judge finds what is planted.
-module(chatter_nemesis_SUITE).
-behaviour(ct_suite).

-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-define(PLANTS, 250). % of each kind
-define(NODES, ['a@x', 'b@x', 'c@x', 'd@x']).

suite() -> [{timetrap, {minutes, 10}}].

all() -> [{group, judge}, {group, plan}, planted_in_a_run, stopped_meanwhile, short,
         rolling].

groups() ->
    [{judge, [parallel], [clean, swapped, dropped, repeated, cut_short, false_nodedown, broken,
                          killed_is_no_violation, not_once, unopened, many_gaps]},
     {plan, [parallel], [topologies, equal_seed_equal_plan, always_a_route,
                         only_who_is_there_is_asked]}].

init_per_testcase(Case, Config) when Case =:= short; Case =:= rolling ->
    {module, chatter} = code:ensure_loaded(chatter),
    case chatter_lab:available() of
        ok when Case =:= short -> Config;
        ok ->
            case erlang:function_exported(chatter, drain, 1) of
                true -> Config;
                false -> {skip, "chatter:drain/1 is not there yet"}
            end;
        Skip -> Skip
    end;
init_per_testcase(_, Config) -> Config.

end_per_testcase(_, _Config) -> ok.

%%% ------------------------------------------------------------------------------------
%%% The judge. A history: streams from every node to every other, mixed; each plant changes one.

%% Given histories with nothing wrong, expect no violation.
clean(_Config) ->
    [?assertEqual([], found(judge(history(Seed)))) || Seed <- seeds()].

%% Given two neighbouring messages of a stream swapped, expect it found, and nothing else.
swapped(_Config) ->
    planted([reordered],
            fun(Messages, I) ->
                    {Before, [A, B | After]} = lists:split(I, Messages),
                    Before ++ [B, A | After]
            end).

%% Given one message that never comes, expect it found as lost.
dropped(_Config) ->
    planted([lost], fun(Messages, I) ->
                            {Before, [_ | After]} = lists:split(I, Messages),
                            Before ++ After
                    end).

%% Given one that comes again at a later time, expect it found as repeated.
repeated(_Config) ->
    planted([repeated], fun(Messages, I) ->
                                {Before, [A, B | After]} = lists:split(I, Messages),
                                Before ++ [A, B, A | After]
                        end).

%% Given the last messages of a stream gone, expect them found as lost.
cut_short(_Config) ->
    planted([lost], fun(Messages, I) -> lists:sublist(Messages, I) end).

%% Given a nodedown between two nodes that were there all the time, or of one that was killed at
%% another time, expect it found.
false_nodedown(_Config) ->
    [begin
         [A, B, C | _] = rotated(Seed),
         Down = {A, 500 + Seed, nodedown, B, connection_closed},
         History = history(Seed),
         Kill = killed(C, 100000, ?NODES),
         [?assertEqual([nodedown], found(judge(maps:merge(H, #{events => [Down | Events]}))))
          || H <- [History, maps:merge(History, Kill)], Events <- [maps:get(events, H)]],
         Late = {A, 200001, nodedown, C, connection_closed},
         ?assertEqual([nodedown],
                      found(judge(History#{windows => [{C, killed, 100000, 200000}],
                                           events => [Late | maps:get(events, Kill)]})))
     end || Seed <- seeds()].

%% Given a stream that ended without a reason, expect it found, with what did not arrive.
broken(_Config) ->
    [begin
         #{sent := [{Stream, From, To, Count, open} | Sent]} = History = history(Seed),
         Ended = {Stream, From, To, Count, {ended, 1000, noconnection}},
         ?assertEqual([broken], found(judge(History#{sent := [Ended | Sent]}))),
         More = {Stream, From, To, Count + 3, {ended, 1000, noconnection}},
         ?assertMatch(#{broken := 1, lost := 3}, judge(History#{sent := [More | Sent]}))
     end || Seed <- seeds()].

%% Given the same while one end was killed or stopped beyond the hold, expect no violation.
killed_is_no_violation(_Config) ->
    [begin
         #{sent := [{Stream, From, To, Count, open} | Sent]} = History = history(Seed),
         Ended = {Stream, From, To, Count + 3, {ended, 1000, noconnection}},
         [begin
              Down = {Other, 1000, nodedown, Node, connection_closed},
              Window = #{windows => [{Node, stopped, 900, 1100}], events => [Down]},
              Changed = maps:merge(History#{sent := [Ended | Sent]}, Window),
              ?assertEqual([], found(judge(Changed))),
              %% ... but it is one a moment later.
              Late = Changed#{windows := [{Node, stopped, 900, 999}]},
              ?assertEqual([broken, lost, nodedown], found(judge(Late)))
          end || {Node, Other} <- [{From, To}, {To, From}]]
     end || Seed <- seeds()].

%% Given a killed node of which somebody heard nothing, too much, or in the wrong order, expect it
%% found; given one down and one up at each, not.
not_once(_Config) ->
    [begin
         [Node, Observer | _] = rotated(Seed),
         #{events := Events} = Kill = killed(Node, 1000, ?NODES),
         ?assertEqual([], found(judge(maps:merge(history(Seed), Kill)))),
         Mine = [E || {O, _, _, _, _} = E <- Events, O =:= Observer],
         [Down, Up] = Mine,
         [?assertEqual([not_once],
                       found(judge(maps:merge(history(Seed),
                                              Kill#{events := (Events -- Mine) ++ Wrong}))))
          || Wrong <- [[], [Down], [Up], [Down, Up, Down, Up], [Up, Down]]]
     end || Seed <- seeds()].

%% Given a receiver that never answered, expect it found.
unopened(_Config) ->
    #{sent := Sent} = History = history(1),
    Opening = {{self(), 1}, 'a@x', 'b@x', 0, opening},
    ?assertEqual([unopened], found(judge(History#{sent := [Opening | Sent]}))).

%% Given several gaps in a stream, filled in any order, expect each number counted once.
many_gaps(_Config) ->
    Stream = {self(), 1},
    Arrive = fun(Numbers) ->
                     lists:foldl(fun(N, Notes) ->
                                         chatter_nemesis_check:arrive(Stream, N, 0, Notes)
                                 end, chatter_nemesis_check:new(), Numbers)
             end,
    Notes = Arrive([1, 5, 9, 3, 2, 7, 3, 9, 12]),
    ?assertEqual(#{Stream => {12, [{4, 4, 0}, {6, 6, 0}, {8, 8, 0}, {10, 11, 0}]}},
                 maps:map(fun(_, {Last, Gaps}) -> {Last, lists:sort(Gaps)} end,
                          chatter_nemesis_check:streams(Notes))),
    ?assertMatch(#{repeated := 2, reordered := 3}, chatter_nemesis_check:wrong(Notes)).

%%% ------------------------------------------------------------------------------------
%%% Plans

%% Given the shapes of the manual, expect their links.
topologies(_Config) ->
    ?assertEqual({4, [{1, 2}, {1, 4}, {2, 3}, {3, 4}]}, chatter_nemesis_plan:links({ring, 4})),
    ?assertEqual({3, [{1, 2}, {2, 3}]}, chatter_nemesis_plan:links({links, [{2, 1}, {2, 3}]})),
    [begin
         {N, Links} = chatter_nemesis_plan:links(Shape),
         Degrees = [length(chatter_nemesis_plan:neighbours(I, Links)) || I <- lists:seq(1, N)],
         ?assert(lists:max(Degrees) =< 4),
         ?assert(lists:min(Degrees) >= 2)
     end || Shape <- [{circulant, 12, [1, 3]} | [{random, 16, 4, S} || S <- lists:seq(1, 20)]]].

%% Given equal seeds, expect equal plans; given others, others.
equal_seed_equal_plan(_Config) ->
    ?assertEqual(plan(7, {ring, 9}), plan(7, {ring, 9})),
    ?assertNotEqual(plan(7, {ring, 9}), plan(8, {ring, 9})).

%% Given plans on sparse and dense networks, expect a route at any time, checked apart from the
%% planner: with all faults of a moment applied, whoever is not away reaches the rest.
always_a_route(_Config) ->
    [begin
         {N, Links} = chatter_nemesis_plan:links(Shape),
         Plan = plan(Seed, Shape),
         ?assertEqual(200, length(Plan)),
         ?assert(lists:member(true, [at_a_time(At, Plan) > 1 || {At, _, _} <- Plan])),
         [begin
              Now = [F || {From, F, For} <- Plan, From =< At, At =< From + For],
              Away = [I || {_, I} <- Now],
              Cut = [lists:sort([element(2, F), element(3, F)]) || F <- Now, tuple_size(F) > 2],
              Graph = digraph:new([private]),
              Nodes = lists:seq(1, N) -- Away,
              _ = [digraph:add_vertex(Graph, I) || I <- Nodes],
              _ = [{digraph:add_edge(Graph, A, B), digraph:add_edge(Graph, B, A)}
                   || {A, B} <- Links, not lists:member([A, B], Cut),
                      lists:member(A, Nodes), lists:member(B, Nodes)],
              ?assertMatch([_], digraph_utils:components(Graph)),
              true = digraph:delete(Graph)
          end || {At, _, _} <- Plan]
     end || Shape <- [{ring, 8}, {circulant, 12, [1, 3]}, {random, 16, 4, 3}],
            Seed <- lists:seq(1, 5)].

%% Given a node that is killed or stopped, expect that it is not asked to drop a link meanwhile,
%% while the other end of the link may be.
only_who_is_there_is_asked(_Config) ->
    Topology = chatter_nemesis_plan:links({circulant, 12, [1, 3]}),
    Leaves = fun(Fault, Active) -> chatter_nemesis_plan:leaves_route(Fault, Active, Topology) end,
    [begin
         ?assertNot(Leaves({drop, 11, 12}, [{Kind, 11}])),
         ?assertNot(Leaves({Kind, 11}, [{drop, 11, 12}])),
         ?assert(Leaves({drop, 12, 11}, [{Kind, 11}]))
     end || Kind <- [kill, stop]].

%%% ------------------------------------------------------------------------------------
%%% Over real nodes

%% Given a run in which two nodes are made to disconnect, expect the run to find it: what the judge
%% gets from real nodes is what it takes.
planted_in_a_run(Config) ->
    Result = chatter_nemesis:run(scenario("planted"), #{log => log(Config)}),
    ct:pal("~p", [Result]),
    %% What is under way when a node disconnects another is lost, as over stock.
    ?assertMatch(#{verdict := #{repeated := 0, reordered := 0, unopened := 0}}, Result),
    #{verdict := #{nodedown := Downs, broken := Broken}, problems := Problems} = Result,
    ?assertEqual([], Problems),
    ?assert(Downs >= 2),
    ?assert(Broken >= 1).

%% Given a node that is killed while another is stopped within the hold, expect that this one's
%% nodedown and nodeup, which come late, count as those of the restart.
stopped_meanwhile(Config) ->
    Result = chatter_nemesis:run(scenario("stopped"), #{log => log(Config)}),
    ?assertMatch(#{violations := 0}, Result).

%% Given all kinds of faults over eight nodes, expect nothing lost, repeated or out of order and
%% no nodedown.
short(Config) ->
    Result = chatter_nemesis:run(scenario("short"), #{log => log(Config)}),
    ?assertMatch(#{violations := 0}, Result).

%% Given twelve nodes, each of which is a relay, drained, stopped and started again one after the
%% other under 20,000 messages a second, expect the same.
rolling(Config) ->
    Result = chatter_nemesis:run(scenario("rolling"), #{log => log(Config)}),
    ?assertMatch(#{violations := 0}, Result).

scenario(Name) -> filename:join([chatter_cluster:root(), "test", "lab", Name ++ ".scenario"]).

log(Config) -> proplists:get_value(priv_dir, Config).

%%% ------------------------------------------------------------------------------------
%%% Histories

seeds() -> lists:seq(1, ?PLANTS).

%% Each plant in another history, stream and place.
planted(Expected, Change) ->
    [?assertEqual(Expected, found(judge(history(Seed, Change)))) || Seed <- seeds()].

history(Seed) -> history(Seed, fun(Messages, _) -> Messages end).

history(Seed, Change) ->
    _ = rand:seed(exsss, Seed),
    Streams = [{{stream_pid(From, To), 1}, From, To}
               || From <- ?NODES, To <- ?NODES, From =/= To],
    {Chosen, _, _} = lists:nth(rand:uniform(length(Streams)), Streams),
    Sent = [{Stream, From, To, 20 + rand:uniform(30), open} || {Stream, From, To} <- Streams],
    Arriving = [{To, Stream, case Stream of
                                 Chosen -> Change(lists:seq(1, N), rand:uniform(N - 3));
                                 _ -> lists:seq(1, N)
                             end} || {Stream, _, To, N, _} <- Sent],
    Notes = [arrived([{S, Ns} || {At, S, Ns} <- Arriving, At =:= To]) || To <- ?NODES],
    #{sent => Sent, windows => [], events => [], nodes => ?NODES,
      wrong => [chatter_nemesis_check:wrong(N) || N <- Notes],
      received => lists:foldl(fun maps:merge/2, #{},
                              [chatter_nemesis_check:streams(N) || N <- Notes]),
      receivers => maps:from_list([{Stream, To} || {Stream, _, To} <- Streams])}.

%% The streams of one receiver, mixed.
arrived(Streams) -> arrived([S || {_, [_ | _]} = S <- Streams], chatter_nemesis_check:new()).

arrived([], Notes) -> Notes;
arrived(Streams, Notes) ->
    {Stream, [N | Rest]} = lists:nth(rand:uniform(length(Streams)), Streams),
    Left = [S || {_, [_ | _]} = S <- lists:keyreplace(Stream, 1, Streams, {Stream, Rest})],
    arrived(Left, chatter_nemesis_check:arrive(Stream, N, 1000, Notes)).

%% Any process will do: one for each pair of nodes.
stream_pid(From, To) ->
    case get({From, To}) of
        undefined ->
            Pid = spawn(fun() -> ok end),
            undefined = put({From, To}, Pid),
            Pid;
        Pid -> Pid
    end.

killed(Node, At, Nodes) ->
    #{windows => [{Node, killed, At, At + 5000}],
      events => lists:append([[{O, At + 10, nodedown, Node, connection_closed},
                               {O, At + 3000, nodeup, Node, undefined}]
                              || O <- Nodes, O =/= Node])}.

rotated(Seed) ->
    {Front, Back} = lists:split(Seed rem length(?NODES), ?NODES),
    Back ++ Front.

judge(History) -> chatter_nemesis_check:verdict(History).

%% The kinds of violations found.
found(Verdict) ->
    lists:sort([Kind || {Kind, N} <- maps:to_list(maps:remove(examples, Verdict)), N > 0]).

plan(Seed, Shape) ->
    chatter_nemesis_plan:faults(
      #{count => 200, concurrent => 3, gap_ms => {200, 2000},
        kinds => chatter_nemesis_plan:kinds(switch)}, chatter_nemesis_plan:links(Shape), Seed).

at_a_time(At, Plan) -> length([F || {From, F, For} <- Plan, From =< At, At =< From + For]).
