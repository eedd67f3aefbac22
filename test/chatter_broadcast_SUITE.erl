%% Messages to many nodes, over real ones.
%%
%% CHATTER_KILLS: in how many broadcasts a node is killed in killed_in_the_middle; CHATTER_SEED.
-module(chatter_broadcast_SUITE).
-behaviour(ct_suite).

-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_work, [on/2, start/2]).
-import(chatter_cluster, [wait_until/2]).

-define(TIMEOUT_MS, 20000).

%% One of each kind in each network.
-define(KILLS, 6).

suite() -> [{timetrap, {seconds, 90}}].

all() ->
    [api, net_ids, line, star, mesh, changed_on_the_way, subscriber_credit, unknown_type,
     bad_handler, undecodable, small_terms, many, many_decoded, large, killed_delegate,
     killed_in_the_middle, late_joiner, crash_of_the_process, not_started].

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

end_per_testcase(_Case, _Config) -> chatter_cluster:stop_all().

%% Given two nodes, expect a message at the one that has subscribed, with the node it came from; to
%% a list that has the sender, there as well; and refusals of what is none.
api(_Config) ->
    [A, B] = Nodes = cluster([{a, []}, {b, [a]}]),
    #{sent := Before} = hd(alone(Nodes)),
    [collect(N, greeting) || N <- Nodes],
    NodeA = name(A),
    ok = on(A, fun() -> chatter:broadcast(all, {greeting, 1}) end),
    await(B, greeting, [{NodeA, {greeting, 1}}]),
    Both = [name(A), name(B)],
    ok = on(A, fun() -> chatter:broadcast(Both, {greeting, 2}) end),
    await(B, greeting, [{NodeA, {greeting, 1}}, {NodeA, {greeting, 2}}]),
    await(A, greeting, [{NodeA, {greeting, 2}}]),
    ok = on(A, fun() -> chatter:broadcast(['no@where'], {greeting, 3}) end),
    wait_until(fun() -> maps:get(unreachable, figures(A)) =:= 1 end, ?TIMEOUT_MS),
    [?assertError(_, on(A, fun() -> chatter:broadcast(all, Bad) end))
     || Bad <- [greeting, {greeting}, {"greeting", 1}, [greeting, 1]]],
    Sent = Before + 3,
    ?assertMatch(#{sent := Sent, lost := 0, gaps := 0, damaged := 0}, figures(A)),
    ?assertEqual([], on(A, fun() -> erlang:nodes(connected) end)).

%% Given a node by its address, expect it to be reached; given an address of nobody, nothing.
net_ids(_Config) ->
    [A, B] = cluster([{a, []}, {b, [a]}]),
    collect(B, greeting),
    NodeA = name(A),
    Port = on(B, fun() -> maps:get(port, chatter:info()) end),
    Ref = make_ref(),
    Known = on(A, fun() ->
                          true = chatter_nif:addresses(Ref),
                          receive {Ref, All} -> All end
                  end),
    [Ip | _] = [Ip || {_, At} <- Known, {Ip, P} <- At, P =:= Port],
    Id = {net_id, list_to_tuple(case byte_size(Ip) of
                                    4 -> binary_to_list(Ip);
                                    16 -> [W || <<W:16>> <= Ip]
                                end), Port},
    ok = on(A, fun() -> chatter:broadcast([Id, {net_id, {192, 0, 2, 1}, 1}], {greeting, 1}) end),
    await(B, greeting, [{NodeA, {greeting, 1}}]).

%% Given five nodes in a line, expect each link to carry each message once, in one direction.
line(_Config) ->
    Nodes = chatter_cluster:line(5, tests()),
    Before = alone(Nodes),
    everybody(Nodes, hd(Nodes), 50),
    ?assertEqual([50, 50, 50, 50, 0], sends(Nodes, Before)).

%% Given a star, expect the centre to send to each leaf.
star(_Config) ->
    [Centre | Leaves] = Nodes = chatter_cluster:star(5, tests()),
    Before = alone(Nodes),
    everybody(Nodes, Centre, 50),
    ?assertEqual([200, 0, 0, 0, 0], sends(Nodes, Before)),
    everybody(Nodes, hd(Leaves), 50),
    ?assertEqual([350, 50, 0, 0, 0], sends(Nodes, Before)).

%% Given a full mesh of eight, expect seven sends for each message, three of them by the origin.
mesh(_Config) ->
    [First | _] = Nodes = chatter_cluster:mesh(8, tests()),
    Before = alone(Nodes),
    everybody(Nodes, First, 20),
    Sends = sends(Nodes, Before),
    ?assertEqual({60, 140}, {hd(Sends), lists:sum(Sends)}),
    ?assertEqual([0], lists:usort([maps:get(duplicates, figures(N)) || N <- Nodes])).

%% Given a handler on a relay that adds to a message, with codecs that put NetIDs into the table,
%% expect those behind it to get what it made.
changed_on_the_way(_Config) ->
    [A, B, C] = cluster([{a, []}, {b, [a]}, {c, [b]}]),
    Id = {net_id, {10, 1, 2, 3}, 29999},
    Codec = #{type => clock,
              extract_netids => fun({clock, Ids, _}) -> Ids end,
              encode_with => fun({clock, Ids, N}, Map) ->
                                     Places = << <<(maps:get(I, Map))>> || I <- Ids >>,
                                     <<N:32, Places/binary>>
                             end,
              decode_with => fun(<<N:32, Places/binary>>, Map) ->
                                     Found = [maps:get(P, Map) || <<P>> <= Places],
                                     {{clock, Found, N}, <<>>}
                             end},
    [ok = on(N, fun() -> chatter:add_handler(Codec) end) || N <- [A, C]],
    Merge = Codec#{dispatch => fun({clock, Ids, N}) ->
                                       {ok, {clock, Ids ++ [hd(Ids)], N + 1}}
                               end},
    ok = on(B, fun() -> chatter:add_handler(Merge) end),
    collect(C, clock),
    NodeA = name(A),
    [ok = on(A, fun() -> chatter:broadcast(all, {clock, [Id], N}) end) || N <- [1, 10, 100]],
    await(C, clock, [{NodeA, {clock, [Id, Id], N}} || N <- [2, 11, 101]]),
    ?assertEqual({error, badarg},
                 on(A, fun() -> chatter:add_handler(#{type => x, dispatch => y}) end)).

%% Given a subscription for three, expect three of ten, then that it is over, and the rest counted;
%% when the process dies, no subscription.
subscriber_credit(_Config) ->
    [A, B] = cluster([{a, []}, {b, [a]}]),
    on(B, fun() ->
                  Self = self(),
                  Pid = spawn(fun() ->
                                      ok = chatter:subscribe(greeting, 3),
                                      Self ! ready,
                                      receive never -> ok end
                              end),
                  true = register(slow, Pid),
                  receive ready -> ok end
          end),
    [ok = on(A, fun() -> chatter:broadcast(all, {greeting, N}) end) || N <- lists:seq(1, 10)],
    wait_until(fun() -> maps:get(subscriber_drops, figures(B)) =:= 7 end, ?TIMEOUT_MS),
    Mailbox = on(B, fun() -> element(2, process_info(whereis(slow), messages)) end),
    ?assertMatch([{chatter_broadcast, _, {greeting, 1}}, {chatter_broadcast, _, {greeting, 2}},
                  {chatter_broadcast, _, {greeting, 3}}, {chatter_broadcast_passive, greeting}],
                 Mailbox),
    Slow = on(B, fun() -> whereis(slow) end),
    Rows = fun() -> ets:match(chatter_broadcast, {{subscriber, '_', Slow}, '_', '_'}) end,
    ?assertMatch([_], on(B, Rows)),
    on(B, fun() -> exit(Slow, kill) end),
    wait_until(fun() -> on(B, Rows) =:= [] end, ?TIMEOUT_MS).

%% Given a type that a relay does not know, expect it to be counted there and delivered behind.
unknown_type(_Config) ->
    [A, B, C] = cluster([{a, []}, {b, [a]}, {c, [b]}]),
    collect(C, greeting),
    NodeA = name(A),
    ok = on(A, fun() -> chatter:broadcast(all, {greeting, 1}) end),
    await(C, greeting, [{NodeA, {greeting, 1}}]),
    wait_until(fun() -> maps:get(unknown, figures(B)) =:= 1 end, ?TIMEOUT_MS).

%% Given a handler that fails on a relay, expect messages to go on and others to be handled.
bad_handler(_Config) ->
    [A, B, C] = cluster([{a, []}, {b, [a]}, {c, [b]}]),
    [collect(N, Type) || N <- [B, C], Type <- [bad, greeting]],
    NodeA = name(A),
    Bad = #{type => bad, dispatch => fun(_) -> error(bad) end},
    ok = on(B, fun() -> chatter:add_handler(Bad) end),
    [ok = on(A, fun() -> chatter:broadcast(all, {Type, 1}) end) || Type <- [bad, greeting]],
    [await(N, Type, [{NodeA, {Type, 1}}]) || N <- [B, C], Type <- [bad, greeting]],
    ?assertEqual(1, maps:get(handler_crashes, figures(B))).

%% Given a message with an atom that the receiver does not have, expect it counted and not made.
undecodable(_Config) ->
    [A, B] = cluster([{a, []}, {b, [a]}]),
    collect(B, greeting),
    NodeA = name(A),
    Unique = integer_to_binary(rand:uniform(1 bsl 60)),
    Odd = <<"nobody has this", Unique/binary>>,
    on(A, fun() ->
                  ok = chatter:broadcast(all, {greeting, binary_to_atom(Odd)}),
                  ok = chatter:broadcast(all, {greeting, 1})
          end),
    await(B, greeting, [{NodeA, {greeting, 1}}]),
    ?assertEqual(1, maps:get(undecodable, figures(B))),
    ?assertError(badarg, on(B, fun() -> binary_to_existing_atom(Odd) end)).

%% Given terms of all kinds, short and not so short, expect them as they were and in order: those
%% that the native side encodes, and those that it leaves to the VM.
small_terms(_Config) ->
    [A, B] = cluster([{a, []}, {b, [a]}]),
    collect(B, term),
    NodeA = name(A),
    Seed = erlang:unique_integer([positive]),
    ct:pal("seed ~p", [Seed]),
    %% Their atoms are known there.
    true = length(edges()) =:= on(B, fun() -> length(edges()) end),
    Sent = on(A, fun() ->
                         _ = rand:seed(exsss, Seed),
                         Terms = edges() ++ [term(4) || _ <- lists:seq(1, 3000)],
                         [ok = chatter:broadcast([node() | chatter:nodes()], {term, Term})
                          || Term <- Terms],
                         Terms
                 end),
    await(B, term, [{NodeA, {term, Term}} || Term <- Sent]).

%% Beside each bound of the format.
edges() ->
    Ints = [0, 255, 256, -1, 1 bsl 31 - 1, 1 bsl 31, -(1 bsl 31), -(1 bsl 31) - 1, 1 bsl 59,
            1 bsl 63 - 1, 1 bsl 63, -(1 bsl 63), -(1 bsl 63) - 1, 1 bsl 64, 1 bsl 200],
    Sizes = [0, 1, 63, 64, 65, 200, 240, 250, 260, 1000, 1020, 1030, 4080, 4090, 4100, 20000],
    Binaries = [rand:bytes(Size) || Size <- Sizes] ++ [binary:copy(<<"a">>, S) || S <- Sizes],
    Deep = fun(N) -> lists:foldl(fun(_, T) -> {T} end, [], lists:seq(1, N)) end,
    Ints ++ Binaries ++ [Deep(N) || N <- [10, 14, 15, 16, 17, 18, 100]]
        ++ [[], {}, #{}, "", "text", [a | b], [1 | <<>>], <<5:3>>, 1.5, -0.0, 1.0e300, self(),
            make_ref(), fun erlang:now/0, list_to_atom([233]), list_to_atom([8364]), '',
            list_to_atom(lists:duplicate(255, $x)), list_to_tuple(lists:seq(1, 255)),
            list_to_tuple(lists:seq(1, 256)), lists:seq(1, 2000), lists:duplicate(5000, [])].

term(0) ->
    element(rand:uniform(6), {rand:uniform(300), -rand:uniform(1 bsl 40), term, rand:uniform(),
                              rand:bytes(rand:uniform(90)), []});
term(Depth) ->
    Some = fun() -> [term(rand:uniform(Depth) - 1) || _ <- lists:seq(1, rand:uniform(5) - 1)] end,
    case rand:uniform(5) of
        1 -> list_to_tuple(Some());
        2 -> Some();
        3 -> maps:from_list([{Term, Term} || Term <- Some()]);
        _ -> term(0)
    end.

%% Given many small messages of two types and some large ones between them, sent by two processes,
%% expect each in its sender's order, and credit that is used up in the middle of them.
many(_Config) ->
    [A, B] = cluster([{a, []}, {b, [a]}]),
    NodeA = name(A),
    Count = 20000,
    [collect(B, Type) || Type <- [one, two]],
    on(B, fun() ->
                  Self = self(),
                  spawn(fun() ->
                                ok = chatter:subscribe(one, 12345),
                                Self ! {ready, self()},
                                true = register(limited, self()),
                                receive never -> ok end
                        end),
                  receive {ready, _} -> ok end
          end),
    Body = fun(N) -> if N rem 500 =:= 0 -> rand:bytes(3000 * (N rem 7)); true -> N end end,
    Send = fun(Type, Other) ->
                   [ok = chatter:broadcast([NodeB], {T, N, Body(N)})
                    || NodeB <- chatter:nodes(), N <- lists:seq(1, Count), T <- [Type, Other],
                       T =:= Type orelse N rem 100 =:= 0]
           end,
    on(A, fun() ->
                  {_, Ref} = spawn_monitor(fun() -> Send(one, three) end),
                  Send(two, three),
                  receive {'DOWN', Ref, _, _, Reason} -> normal = Reason end
          end),
    Wanted = lists:seq(1, Count),
    [wait_until(fun() ->
                        Seen = numbers(B, Type),
                        Seen =:= Wanted orelse {length(Seen), Wanted -- Seen, Seen -- Wanted}
                end, ?TIMEOUT_MS) || Type <- [one, two]],
    {messages, Limited} = on(B, fun() -> process_info(whereis(limited), messages) end),
    ?assertEqual(lists:seq(1, 12345), [N || {chatter_broadcast, From, {one, N, _}} <- Limited,
                                            From =:= NodeA]),
    ?assertEqual({chatter_broadcast_passive, one}, lists:last(Limited)),
    ?assertMatch(#{subscriber_drops := 7655, unknown := 400, undecodable := 0, duplicates := 0},
                 figures(B)).

%% Given handlers that decode and dispatch at the receiver, and encode at the sender, expect the
%% same of many messages.
many_decoded(_Config) ->
    [A, B] = cluster([{a, []}, {b, [a]}]),
    NodeA = name(A),
    Codec = #{type => one,
              encode_with => fun({one, N}, _) -> <<N:32>> end,
              decode_with => fun(<<N:32>>, _) -> {{one, N}, <<>>} end},
    [ok = on(N, fun() -> chatter:add_handler(Codec) end) || N <- [A, B]],
    collect(B, one),
    collect(B, two),
    ok = on(B, fun() ->
                       persistent_term:put(seen, counters:new(1, [])),
                       Dispatch = fun({two, N}) ->
                                          N = counters:get(persistent_term:get(seen), 1) + 1,
                                          counters:add(persistent_term:get(seen), 1, 1)
                                  end,
                       chatter:add_handler(#{type => two, dispatch => Dispatch})
               end),
    Numbers = lists:seq(1, 5000),
    on(A, fun() -> [ok = chatter:broadcast(all, {T, N}) || N <- Numbers, T <- [one, two]] end),
    [await(B, Type, [{NodeA, {Type, N}} || N <- Numbers]) || Type <- [one, two]],
    ?assertEqual(5000, on(B, fun() -> counters:get(persistent_term:get(seen), 1) end)),
    ?assertMatch(#{handler_crashes := 0, undecodable := 0}, figures(B)).

%% Given messages of all sizes, compressible and not, over a relay, expect them whole and in order;
%% given one that is too large, an error.
large(_Config) ->
    [A, B, C] = cluster([{a, []}, {b, [a]}, {c, [b]}]),
    [collect(N, blob) || N <- [B, C]],
    NodeA = name(A),
    Sizes = [0, 300, 15000, 17000, 65536, 70000, 1 bsl 20, 8 bsl 20],
    Blobs = lists:append([[binary:copy(<<"abcd">>, S div 4), rand:bytes(S)] || S <- Sizes]),
    on(A, fun() -> [ok = chatter:broadcast(all, {blob, Blob}) || Blob <- Blobs] end),
    Wanted = [{NodeA, erlang:md5(Blob)} || Blob <- Blobs],
    [wait_until(fun() -> Wanted =:= digests(N, blob) end, 30000) || N <- [B, C]],
    ?assertEqual({error, too_large},
                 on(A, fun() -> chatter:broadcast(all, {blob, rand:bytes(17 bsl 20)}) end)).

%% Given a node that is killed while it passes messages on, expect everything at all others, once.
killed_delegate(_Config) ->
    [First, Second | Others] = Nodes = chatter_cluster:mesh(6, tests()),
    [collect(N, greeting) || N <- Nodes -- [First]],
    NodeA = name(First),
    on(First, fun() ->
                      spawn(fun() ->
                                    [begin
                                         ok = chatter:broadcast(all, {greeting, N}),
                                         receive after 1 -> ok end
                                     end || N <- lists:seq(1, 1000)]
                            end)
              end),
    receive after 300 -> ok end,
    chatter_cluster:kill9(Second),
    [await(N, greeting, [{NodeA, {greeting, I}} || I <- lists:seq(1, 1000)]) || N <- Others].

%% Given a node in the middle of the tree that is killed while a message is on its way, expect it
%% at all who live, once and within two seconds.
killed_in_the_middle() ->
    [{timetrap, {seconds, 120 + 20 * setting("CHATTER_KILLS", ?KILLS)}}].

killed_in_the_middle(_Config) ->
    Kills = setting("CHATTER_KILLS", ?KILLS),
    Seed = setting("CHATTER_SEED", erlang:system_time(second) rem 1000000),
    ct:pal("CHATTER_SEED=~b CHATTER_KILLS=~b", [Seed, Kills]),
    Results = lists:append([chatter_broadcast_kills:run(Shape, Rounds, Seed)
                            || {Shape, Rounds} <- [{mesh, (Kills + 1) div 2},
                                                   {cube, Kills div 2}]]),
    [begin
         Of = [R || #{way := W} = R <- Results, W =:= Way],
         Late = lists:sort([L || #{late_ms := L} <- Of]),
         Anew = length([yes || #{replanned := N} <- Of, N > 0]),
         Median = lists:nth((length(Late) + 1) div 2, Late),
         ct:pal("~p: ~b kills, planned anew after ~b; late at most ~.1f ms, median ~.1f ms",
                [Way, length(Of), Anew, lists:last(Late), Median]),
         %% Whoever would have got a message from a stopped node, or one that holds it, needs
         %% another way; unless the death was known where the message came from before that did.
         Way =:= running orelse ?assert(Anew > 0)
     end || Way <- lists:usort([W || #{way := W} <- Results])],
    ?assertEqual([], [R || #{late_ms := Late} = R <- Results, Late > 2000]).

%% Given a node that joins while messages are sent, expect it to get all from some point on.
late_joiner(_Config) ->
    [A, B] = cluster([{a, []}, {b, [a]}]),
    collect(B, greeting),
    NodeA = name(A),
    Send = fun(Range) ->
                   on(A, fun() -> [ok = chatter:broadcast(all, {greeting, N}) || N <- Range] end)
           end,
    Send(lists:seq(1, 10)),
    C = start(c, #{links => static, neighbours => [b]}),
    chatter_cluster:await_routes([A, B, C], ?TIMEOUT_MS),
    collect(C, greeting),
    Send(lists:seq(11, 30)),
    await(C, greeting, [{NodeA, {greeting, N}} || N <- lists:seq(11, 30)]),
    await(B, greeting, [{NodeA, {greeting, N}} || N <- lists:seq(1, 30)]).

%% Given a crash of the process that delivers, expect subscriptions and handlers to live on.
crash_of_the_process(_Config) ->
    [A, B] = cluster([{a, []}, {b, [a]}]),
    collect(B, greeting),
    NodeA = name(A),
    Old = on(B, fun() -> whereis(chatter_broadcast) end),
    on(B, fun() -> exit(Old, kill) end),
    wait_until(fun() ->
                       New = on(B, fun() -> whereis(chatter_broadcast) end),
                       is_pid(New) andalso New =/= Old
               end, ?TIMEOUT_MS),
    ok = on(A, fun() -> chatter:broadcast(all, {greeting, 1}) end),
    await(B, greeting, [{NodeA, {greeting, 1}}]).

%% Given a node whose distribution has been stopped, expect an error.
not_started(_Config) ->
    A = start(a, #{}),
    ?assertEqual({error, not_started},
                 on(A, fun() ->
                               ok = chatter_nif:node_stop(0),
                               chatter:broadcast(all, {greeting, 1})
                       end)).

%%% Help

tests() -> #{args => ["-pa", filename:dirname(code:which(?MODULE))]}.

%% Nodes with links to those named, which were started before; all have routes to all.
cluster(Wanted) ->
    Nodes = [start(Name, #{links => static, neighbours => To}) || {Name, To} <- Wanted],
    chatter_cluster:await_routes(Nodes, ?TIMEOUT_MS),
    Nodes.

name(#{node := Node}) -> Node.

setting(Name, Default) ->
    case os:getenv(Name) of
        false -> Default;
        Value -> list_to_integer(Value)
    end.

figures(Peer) -> on(Peer, fun() -> maps:get(broadcast, chatter:info()) end).

%% From now on the node keeps the broadcasts of a type that it gets.
collect(Peer, Type) ->
    on(Peer, fun() ->
                     Self = self(),
                     Pid = spawn(fun() ->
                                         ok = chatter:subscribe(Type, 1000000),
                                         Self ! ready,
                                         collecting([])
                                 end),
                     true = register(collector(Type), Pid),
                     receive ready -> ok end
             end).

collector(Type) -> list_to_atom("collector_" ++ atom_to_list(Type)).

collecting(Seen) ->
    receive
        {chatter_broadcast, From, Msg} -> collecting([{From, Msg} | Seen]);
        {seen, To} -> To ! {seen, lists:reverse(Seen)}, collecting(Seen)
    end.

seen(Peer, Type) ->
    on(Peer, fun() ->
                     collector(Type) ! {seen, self()},
                     receive {seen, Seen} -> Seen end
             end).

%% The same for messages that are too large to be asked for.
digests(Peer, Type) ->
    on(Peer, fun() ->
                     collector(Type) ! {seen, self()},
                     receive {seen, Seen} -> [{From, erlang:md5(B)} || {From, {_, B}} <- Seen] end
             end).

numbers(Peer, Type) ->
    on(Peer, fun() ->
                     collector(Type) ! {seen, self()},
                     receive {seen, Seen} -> [element(2, Msg) || {_, Msg} <- Seen] end
             end).

%% Exactly these have arrived, and no more come.
await(Peer, Type, Wanted) ->
    wait_until(fun() ->
                       Seen = seen(Peer, Type),
                       Seen =:= Wanted orelse {length(Seen), Wanted -- Seen, Seen -- Wanted}
               end, ?TIMEOUT_MS).

%% One after the other, so that each is a packet of its own.
everybody(Nodes, From, N) ->
    Type = list_to_atom("type_" ++ integer_to_list(erlang:unique_integer([positive]))),
    Others = Nodes -- [From],
    [collect(Peer, Type) || Peer <- Others],
    Node = name(From),
    Before = maps:get(sent, figures(From)),
    [begin
         ok = on(From, fun() -> chatter:broadcast(all, {Type, I}) end),
         wait_until(fun() -> maps:get(own_bytes, figures(From)) =:= 0 end, ?TIMEOUT_MS)
     end || I <- lists:seq(1, N)],
    [await(Peer, Type, [{Node, {Type, I}} || I <- lists:seq(1, N)]) || Peer <- Others],
    ?assertEqual(Before + N, maps:get(sent, figures(From))).

%% Packets that each node has sent since.
sends(Nodes, Before) ->
    [maps:get(tree_packets, figures(N)) - Tree
     || {N, #{tree_packets := Tree}} <- lists:zip(Nodes, Before)].

%% Groups are kept by broadcasts too: without them. The figures after that.
alone(Nodes) ->
    [ok = on(N, fun() -> supervisor:terminate_child(chatter_dist_sup, chatter_group_srv) end)
     || N <- Nodes],
    settled(Nodes, []).

settled(Nodes, Last) ->
    case [figures(N) || N <- Nodes] of
        Last -> Last;
        Now ->
            timer:sleep(1000),
            settled(Nodes, Now)
    end.
