%% Broadcasts that go by multicast first, over real nodes in network namespaces joined by a switch
%% that loses what is sent to groups: everything arrives once and in order, whatever multicast does.
-module(chatter_multicast_SUITE).
-behaviour(ct_suite).

-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_cluster, [wait_until/2]).
-import(chatter_work, [on/2]).

-define(TIMEOUT_MS, 20000).

suite() -> [{timetrap, {minutes, 3}}].

all() -> [one_datagram, a_fifth_lost, blocked, one_way, some_only, switched_off_meanwhile,
          killed_in_the_middle].

init_per_suite(Config) ->
    case chatter_lab:available() of
        ok -> Config;
        Skip -> Skip
    end.

end_per_suite(_Config) -> ok.

init_per_testcase(_, Config) ->
    ok = chatter_cluster:new(),
    Config.

end_per_testcase(_, _Config) ->
    ok = chatter_cluster:stop_all(),
    _ = [ok = chatter_lab:close(Lab) || Lab <- [get(lab)], Lab =/= undefined],
    ok.

%%% ------------------------------------------------------------------------------------

%% Given five nodes that hear each other, expect each broadcast to leave as one datagram for three
%% of them and one packet for the fourth, each message once at each node, and nothing sent again.
one_datagram(_Config) ->
    {_, [A | Others]} = network(5),
    Before = figures(A),
    in_turn(A, Others, 100),
    After = figures(A),
    ct:log("~p", [After]),
    ?assertEqual({100, 0}, {grown(casts, Before, After), grown(over_rate, Before, After)}),
    ?assertEqual(300, grown(cast_targets, Before, After)),
    %% On a busy machine some acknowledgements may come too late.
    ?assert(grown(cast_acked, Before, After) >= 280),
    ?assert(grown(tree_packets, Before, After) =< 120),
    ?assertMatch(#{lost := 0, damaged := 0, unsent := 0}, After),
    Came = lists:sum([maps:get(cast_messages, figures(P)) || P <- Others]),
    ?assert(Came >= 300).

%% Given a fifth of what is sent to groups lost, on each way by itself, expect all of 2,000 messages
%% once and in order, and repairs.
a_fifth_lost(_Config) ->
    {Lab, [A | Others]} = network(5),
    shape(Lab, pairs(5), 20),
    burst(A, Others, 2000),
    Figures = figures(A),
    ct:log("~p~n~p", [Figures, [figures(P) || P <- Others]]),
    ?assertMatch(#{lost := 0}, Figures),
    ?assert(maps:get(repairs, Figures) + maps:get(left_to_links, Figures) > 0),
    ?assert(lists:sum([maps:get(naks_out, figures(P)) || P <- Others]) > 0).

%% Given that no datagram arrives any more, though all have just heard each other, expect everything
%% everywhere, and datagrams to end soon.
blocked(_Config) ->
    {Lab, [A | Others]} = network(4),
    shape(Lab, pairs(4), 100),
    in_turn(A, Others, 50),
    #{proofs := Proofs, proofs_lost := ProofsLost, lost := 0} = figures(A),
    ?assert(Proofs < 2 andalso ProofsLost >= 2),
    Before = figures(A),
    in_turn(A, Others, 20),
    ?assertEqual(0, grown(casts, Before, figures(A))).

%% Given that no datagram of the sender arrives, or none of the receivers, expect the same.
one_way(_Config) ->
    {Lab, [A | Others]} = network(4),
    From = [{1, To} || To <- [2, 3, 4]],
    shape(Lab, From, 100),
    in_turn(A, Others, 50),
    shape(Lab, From, 0),
    shape(Lab, [{B, C} || {C, B} <- From], 100),
    in_turn(A, Others, 50),
    ?assertMatch(#{lost := 0}, figures(A)).

%% Given that some hear datagrams and others do not, expect the first to go on getting them.
some_only(_Config) ->
    {Lab, [A | Others]} = network(5),
    shape(Lab, [{1, 4}, {1, 5}], 100),
    in_turn(A, Others, 50),
    Before = figures(A),
    in_turn(A, Others, 20),
    ?assertEqual(20, grown(casts, Before, figures(A))),
    ?assertMatch(#{proofs := 2, lost := 0}, figures(A)).

%% Given an interface that takes no datagrams any more while messages are sent, expect all of them.
switched_off_meanwhile(_Config) ->
    {Lab, [A, B | _] = [_ | Others]} = network(4),
    Seen = collect(Others),
    Pid = sender(A, 3000, 1),
    receive after 500 -> ok end,
    shape(Lab, pairs(4), 100),
    receive after 1000 -> ok end,
    shape(Lab, pairs(4), 0),
    await(Seen, A, 3000),
    ?assertEqual(false, on(A, fun() -> is_process_alive(Pid) end)),
    ?assertMatch(#{lost := 0, gaps := 0}, figures(B)).

%% Given a receiver that is killed while messages are sent, expect all of them at the others.
killed_in_the_middle(_Config) ->
    {Lab, [A, B | Others]} = network(5),
    shape(Lab, pairs(5), 5),
    Seen = collect(Others),
    _ = sender(A, 2000, 1),
    receive after 500 -> ok end,
    ok = chatter_cluster:kill9(B),
    await(Seen, A, 2000),
    wait_until(fun() -> maps:get(own_bytes, figures(A)) =:= 0 end, ?TIMEOUT_MS).

%%% ------------------------------------------------------------------------------------
%%% Help

%% So many nodes on one segment that know that they hear each other, linked each with each, so that
%% nobody is cut off when one is killed. Groups are kept out of it.
network(Count) ->
    Lab = chatter_lab:open(#{nodes => Count, network => switch, seed => 7}),
    _ = put(lab, Lab),
    Peers = [begin
                 Before = [chatter_lab:node_name(J) || J <- lists:seq(1, I - 1)],
                 chatter_lab:start(Lab, I, #{chatter => [{multicast, true}], links => static,
                                             neighbours => [#{node => N} || N <- Before]})
             end || I <- lists:seq(1, Count)],
    wait_until(fun() ->
                       Links = [length(on(P, fun() -> chatter:neighbours() end)) || P <- Peers],
                       lists:usort(Links) =:= [Count - 1] orelse Links
               end, ?TIMEOUT_MS),
    chatter_cluster:await_routes(Peers, ?TIMEOUT_MS),
    [ok = on(P, fun() -> supervisor:terminate_child(chatter_dist_sup, chatter_group_srv) end)
     || P <- Peers],
    wait_until(fun() ->
                       Proofs = [maps:get(proofs, figures(P)) || P <- Peers],
                       lists:usort(Proofs) =:= [Count - 1] orelse Proofs
               end, ?TIMEOUT_MS),
    wait_until(fun() -> lists:sum([maps:get(own_bytes, figures(P)) || P <- Peers]) =:= 0 end,
               ?TIMEOUT_MS),
    {Lab, Peers}.

pairs(Count) -> [{A, B} || A <- lists:seq(1, Count), B <- lists:seq(1, Count), A =/= B].

shape(Lab, Pairs, Percent) -> ok = chatter_lab:shape(Lab, Pairs, [{group_loss, Percent}]).

figures(Peer) -> on(Peer, fun() -> maps:get(broadcast, chatter:info()) end).

grown(Key, Before, After) -> maps:get(Key, After) - maps:get(Key, Before).

%% One after the other.
in_turn(#{node := _} = A, Others, Count) ->
    Seen = collect(Others),
    {_, Type} = Seen,
    on(A, fun() ->
                  [begin
                       ok = chatter:broadcast(all, {Type, N}),
                       empty()
                   end || N <- lists:seq(1, Count)]
          end),
    await(Seen, A, Count).

empty() ->
    case maps:get(own_bytes, chatter_broadcast:figures()) of
        0 -> ok;
        _ -> receive after 1 -> empty() end
    end.

%% As fast as they are taken, in small lots.
burst(A, Others, Count) ->
    {_, Type} = Seen = collect(Others),
    on(A, fun() ->
                  [begin
                       ok = chatter:broadcast(all, {Type, N}),
                       N rem 10 =:= 0 andalso receive after 2 -> ok end
                   end || N <- lists:seq(1, Count)]
          end),
    await(Seen, A, Count).

%% A process that sends so many, with a pause after each.
sender(A, Count, PauseMs) ->
    on(A, fun() ->
                  spawn(fun() ->
                                [begin
                                     ok = chatter:broadcast(all, {counted, N}),
                                     receive after PauseMs -> ok end
                                 end || N <- lists:seq(1, Count)]
                        end)
          end).

%% A process on each that takes what comes of a type, and looks whether it comes in order.
collect(Peers) ->
    Type = counted,
    [on(P, fun() ->
                   Self = self(),
                   _ = [begin
                            Ref = monitor(process, Old),
                            exit(Old, kill),
                            receive {'DOWN', Ref, process, Old, _} -> ok end
                        end || Old <- [whereis(collector)], is_pid(Old)],
                   Pid = spawn(fun() ->
                                       ok = chatter:subscribe(Type, 1000000),
                                       true = register(collector, self()),
                                       Self ! {ready, self()},
                                       collecting(1, [])
                               end),
                   receive {ready, Pid} -> ok end
           end) || P <- Peers],
    {Peers, Type}.

collecting(Next, Wrong) ->
    receive
        {chatter_broadcast, _, {_, Next}} -> collecting(Next + 1, Wrong);
        {chatter_broadcast, From, {_, N}} -> collecting(Next, [{From, N, Next} | Wrong]);
        {seen, To} -> To ! {seen, {Next - 1, Wrong}}, collecting(Next, Wrong)
    end.

%% All have got the numbers up to Count, once each and in order.
await({Peers, _}, _, Count) ->
    Seen = fun(P) ->
                   on(P, fun() ->
                                 collector ! {seen, self()},
                                 receive {seen, Seen} -> Seen end
                         end)
           end,
    wait_until(fun() ->
                       All = [Seen(P) || P <- Peers],
                       lists:usort(All) =:= [{Count, []}] orelse All
               end, 60000).
