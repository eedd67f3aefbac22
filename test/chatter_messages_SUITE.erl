%% Messages and calls without a distribution connection: chatter:send/3 and chatter:call/5.
-module(chatter_messages_SUITE).
-behaviour(ct_suite).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_work, [on/2, start/2]).
-import(chatter_cluster, [wait_until/2]).

-define(TIMEOUT_MS, 20000).

suite() -> [{timetrap, {seconds, 90}}].

all() ->
    [{group, direct}, {group, relayed}, slow_receiver, receiver_never_reads_channel, deadlines,
     killed_relay, killed_peer, former_life, unused_channels_are_closed, processes_killed,
     limits, dials, classes, losses_are_told].

groups() ->
    Both = [no_connection, receivers, in_order, sizes, concurrent_calls, results],
    [{direct, [], Both ++ [bad_arguments, local, errors_as_erpc, unreachable, unreadable, figures]},
     {relayed, [], Both}].

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

init_per_group(direct, Config) ->
    [{nodes, chatter_work:shared(fun() -> linked(#{}, #{}) end)} | Config];
init_per_group(relayed, Config) ->
    Nodes = chatter_work:shared(
              fun() ->
                      A = start(a, #{links => static}),
                      R = start(r, #{links => static, neighbours => [A]}),
                      B = start(b, #{links => static, neighbours => [R]}),
                      chatter_cluster:await_routes([A, R, B], ?TIMEOUT_MS),
                      [A, B]
              end),
    [{nodes, Nodes} | Config].

end_per_group(_, _Config) -> chatter_cluster:stop_all().

end_per_testcase(Case, _Config) ->
    case lists:member(Case, all()) of
        true -> chatter_cluster:stop_all();
        false -> ok
    end.

%% Two nodes with a link, and further keys of each.
linked(KeysA, KeysB) ->
    A = start(a, #{links => static, chatter => maps:to_list(KeysA)}),
    B = start(b, #{links => static, chatter => maps:to_list(KeysB), neighbours => [A]}),
    chatter_cluster:await_routes([A, B], ?TIMEOUT_MS),
    [A, B].

%%% Both ways

%% Given messages and calls in both directions, expect them to arrive, and no connection.
no_connection(Config) ->
    [A, B] = ?config(nodes, Config),
    [begin
         ok = collector(To, Name),
         ok = on(From, fun() -> chatter:send({Name, NodeTo}, {hello, node()}, []) end),
         await_collected(To, Name, [{hello, NodeFrom}]),
         ?assertEqual(NodeTo, on(From, fun() -> chatter:call(NodeTo, erlang, node, [], 5000) end))
     end || {#{node := NodeFrom} = From, #{node := NodeTo} = To, Name} <- [{A, B, c1}, {B, A, c2}]],
    ?assertEqual([[], []], [on(N, fun() -> nodes(connected) end) || N <- [A, B]]).

%% Given receivers by identifier, name and alias of a call, and some that are not there, expect
%% those that are there to get theirs, with all kinds of options.
receivers(Config) ->
    [A, #{node := NodeB} = B] = ?config(nodes, Config),
    ok = collector(B, named),
    Pid = on(B, fun() -> whereis(named) end),
    Gone = on(B, fun() -> {P, R} = spawn_monitor(fun() -> ok end),
                          receive {'DOWN', R, _, _, _} -> P end end),
    on(A, fun() ->
                  ok = chatter:send(Pid, one, []),
                  ok = chatter:send(Gone, lost, []),
                  ok = chatter:send({nobody, NodeB}, lost, []),
                  ok = chatter:send({named, NodeB}, two, [unreliable, {priority, high}]),
                  ok = chatter:send(Pid, three, [{deadline, 60000}, unordered, {priority, low}]),
                  ok = chatter:send({named, NodeB}, four, [{priority, normal}])
          end),
    %% The third is in no order with the others.
    wait_until(fun() -> length(collected(B, named)) =:= 4 orelse collected(B, named) end,
               ?TIMEOUT_MS),
    ?assertEqual([one, two, four], collected(B, named) -- [three]).

%% Given many senders to one receiver at once, by identifier and name, in both directions, expect
%% everything, each sender's messages in order.
in_order(Config) ->
    [A, B] = ?config(nodes, Config),
    Senders = 40, Each = 500,
    [ok = chatter_work:sink(N, ordered) || N <- [A, B]],
    [begin
         Pid = on(To, fun() -> whereis(ordered) end),
         on(From, fun() -> pour_all({Pid, {ordered, NodeTo}}, Senders, Each) end)
     end || {From, #{node := NodeTo} = To} <- [{A, B}, {B, A}]],
    [chatter_work:await_seen({N, ordered}, Senders * Each, 60000) || N <- [A, B]].

%% Given messages of all sizes up to 20 MiB, expect each whole, in order.
sizes(Config) ->
    [A, #{node := NodeB} = B] = ?config(nodes, Config),
    ok = collector(B, large),
    Sizes = [0, 1, 63, 64, 65, 8191, 8192, 16380, 16384, 16385, 65536, 1 bsl 20, 20 bsl 20, 3],
    on(A, fun() ->
                  [ok = chatter:send({large, NodeB}, {Size, chatter_work:pattern(Size)}, [])
                   || Size <- Sizes]
          end),
    wait_until(fun() -> length(Sizes) =:= length(collected(B, large, fun({S, _}) -> S end)) end,
               ?TIMEOUT_MS),
    ?assertEqual([{Size, true} || Size <- Sizes],
                 collected(B, large, fun({S, D}) -> {S, D =:= chatter_work:pattern(S)} end)).

%% Given many calls at once, expect each its own result.
concurrent_calls(Config) ->
    [A, #{node := NodeB}] = ?config(nodes, Config),
    Results = on(A, fun() ->
                            Self = self(),
                            [spawn_link(fun() ->
                                                R = chatter:call(NodeB, lists, seq, [I, I + 3],
                                                                 30000),
                                                Self ! {result, I, R}
                                        end) || I <- lists:seq(1, 500)],
                            [receive {result, I, R} -> {I, R} end || I <- lists:seq(1, 500)]
                    end),
    ?assertEqual([{I, [I, I + 1, I + 2, I + 3]} || I <- lists:seq(1, 500)], Results).

%% Given large arguments and results, timeouts in all forms, and results that come too late, expect
%% what was asked for and nothing left in the mailbox.
results(Config) ->
    [A, #{node := NodeB}] = ?config(nodes, Config),
    on(A, fun() ->
                  Data = chatter_work:pattern(3 bsl 20),
                  Data = chatter:call(NodeB, lists, last, [[1, Data]], infinity),
                  Abs = {abs, erlang:monotonic_time(millisecond) + 20000},
                  [a] = chatter:call(NodeB, lists, reverse, [[a]], Abs),
                  Late = try chatter:call(NodeB, timer, sleep, [500], 50)
                         catch error:Reason -> Reason end,
                  {erpc, timeout} = Late,
                  receive after 800 -> ok end,
                  {messages, []} = process_info(self(), messages),
                  {monitors, []} = process_info(self(), monitors)
          end).

%%% What goes wrong

%% Given arguments that are none, expect badarg, as of `erpc'.
bad_arguments(Config) ->
    [A, #{node := NodeB}] = ?config(nodes, Config),
    Sends = [{Dest, []} || Dest <- [name, {name, "b"}, {name, NodeB, x}, make_ref(), 7]]
        ++ [{{name, NodeB}, Opts}
            || Opts <- [[ordered], [{priority, urgent}], [{deadline, 0}], [{deadline, soon}],
                        [{deadline, 1 bsl 32}], unreliable, [unreliable | x],
                        [{unreliable, true}]]],
    [?assertEqual({Args, {error, badarg}},
                  {Args, on(A, fun() -> outcome(chatter, send, Args) end)})
     || {Dest, Opts} <- Sends, Args <- [[Dest, m, Opts]]],
    Calls = [["b", m, f, [], 1], [NodeB, "m", f, [], 1], [NodeB, m, 1, [], 1],
             [NodeB, m, f, a, 1], [NodeB, m, f, [], -1], [NodeB, m, f, [], 1 bsl 32],
             [NodeB, m, f, [], soon]],
    [?assertEqual({Args, {error, {erpc, badarg}}},
                  {Args, on(A, fun() -> outcome(chatter, call, Args) end)}) || Args <- Calls].

%% Given this node itself as the destination, expect the same to work without a channel.
local(Config) ->
    [#{node := NodeA} = A, _] = ?config(nodes, Config),
    Before = on(A, fun() -> maps:get(messages, chatter:info()) end),
    on(A, fun() ->
                  true = register(me, self()),
                  ok = chatter:send(self(), one, [{priority, high}]),
                  ok = chatter:send({me, NodeA}, two, [unreliable]),
                  ok = chatter:send({nobody, NodeA}, lost, []),
                  [receive M -> M after 0 -> error(M) end || M <- [one, two]],
                  NodeA = chatter:call(NodeA, erlang, node, [], infinity),
                  {error, {erpc, timeout}} =
                      outcome(chatter, call, [NodeA, timer, sleep, [99], 9]),
                  true = unregister(me)
          end),
    ?assertEqual(Before, on(A, fun() -> maps:get(messages, chatter:info()) end)).

%% Given calls that go wrong in all ways, expect class and reason, stack included, to be those that
%% `erpc:call/5' gives between two stock nodes.
errors_as_erpc(Config) ->
    [A, #{node := NodeB}] = ?config(nodes, Config),
    Chatter = [on(A, fun() -> outcome(chatter, call, [NodeB | Args]) end) || Args <- wrong()],
    chatter_work:shared(
      fun() ->
              Stock = start(sa, #{carrier => stock}),
              #{node := StockB} = start(sb, #{carrier => stock}),
              Theirs = [on(Stock, fun() -> outcome(erpc, call, [StockB | Args]) end)
                        || Args <- wrong()],
              [?assertEqual({Args, T}, {Args, C})
               || {Args, T, C} <- lists:zip3(wrong(), Theirs, Chatter)]
      end),
    ?assertEqual({error, {erpc, noconnection}},
                 on(A, fun() -> outcome(chatter, call, ['no@where', m, f, [], 5000]) end)).

wrong() ->
    [[erlang, error, [foo], 5000], [erlang, error, [foo, [x]], 5000], [erlang, exit, [foo], 5000],
     [erlang, throw, [foo], 5000], [erlang, exit, [normal], 5000], [lists, nosuch, [1], 5000],
     [nosuch, f, [], 5000], [erlang, atom_to_list, [1], 5000], [lists, map, [x, [1]], 5000],
     [?MODULE, kill_self, [], 5000], [?MODULE, deep, [3], 5000], [?MODULE, tail, [1], 5000],
     [?MODULE, exit_normally, [], 5000], [erlang, apply, [erlang, hd, [[]]], infinity],
     [timer, sleep, [2000], 20], [erlang, node, lists:duplicate(256, x), 5000],
     [erlang, node, [a | b], 5000], [lists, last, [[ok, fine]], 5000]].

kill_self() -> exit(self(), kill), receive after infinity -> ok end.

exit_normally() -> spawn_link(fun() -> exit(gone) end), receive after infinity -> ok end.

deep(0) -> error(deep);
deep(N) -> [deep(N - 1)].

tail(0) -> erlang:error(tail, [0]);
tail(N) -> ?MODULE:tail_too(N - 1).

tail_too(N) -> tail(N).

%% Given a node that nobody knows, expect `unreachable' soon, again and again, and nothing kept.
unreachable(Config) ->
    [A, _] = ?config(nodes, Config),
    Before = on(A, fun() -> erlang:system_info(process_count) end),
    {Micros, Results} = on(A, fun() -> timer:tc(fun() ->
                                   [chatter:send({x, 'no@where'}, I, []) || I <- lists:seq(1, 20)]
                               end) end),
    ?assertEqual(lists:duplicate(20, {error, unreachable}), Results),
    ?assert(Micros < 15000000),
    ?assertEqual([], on(A, fun() -> ets:lookup(chatter_messages, 'no@where') end)),
    wait_until(fun() -> on(A, fun() -> erlang:system_info(process_count) end) =< Before end,
               ?TIMEOUT_MS),
    #{messages := #{unreachable := N}} = on(A, fun chatter:info/0),
    ?assert(N >= 20).

%% Given frames that hold no message, expect them counted, one line logged, and the messages behind
%% them to arrive.
unreadable(Config) ->
    [A, #{node := NodeB} = B] = ?config(nodes, Config),
    ok = collector(B, healthy),
    ok = on(B, fun() ->
                       persistent_term:put(?MODULE, counters:new(1, [])),
                       logger:add_handler(?MODULE, ?MODULE, #{})
               end),
    Elsewhere = on(A, fun() -> self() end),
    Good = term_to_binary({healthy, x}),
    Frames = [<<>>, <<0>>, <<0, 0:32>>, <<0, 0:32, 1, 2, 3>>, <<3, 0:32, Good/binary>>,
              <<32, 0:32, Good/binary>>, <<16, 0:32, Good/binary>>]
        ++ [<<Flags, 0:32, (term_to_binary(Term))/binary>>
            || {Flags, Term} <- [{0, x}, {0, {Elsewhere, x}}, {0, {"healthy", x}},
                                 {16, {make_ref(), m, f, [], -1}}]]
        ++ [<<0, 0:32, (term_to_binary({healthy, lists:duplicate(99, x)}, [compressed]))/binary>>,
            binary:part(<<0, 0:32, (term_to_binary({healthy, lists:seq(1, 99)}))/binary>>, 0, 50)],
    Count = fun() -> maps:get(unreadable, maps:get(messages, on(B, fun chatter:info/0))) end,
    Before = Count(),
    on(A, fun() ->
                  ok = chatter:send({healthy, NodeB}, before, []),
                  {ok, {Channel, _, _}} = chatter_messages:channel(NodeB),
                  Options = {chatter_message_frame:flow(), normal, true, true, 0},
                  [ok = chatter_nif:post(Channel, Options, [Frame]) || Frame <- Frames],
                  ok = chatter:send({healthy, NodeB}, behind, [])
          end),
    await_collected(B, healthy, [before, behind]),
    ?assertEqual(length(Frames), Count() - Before),
    ?assertEqual(1, on(B, fun() -> counters:get(persistent_term:get(?MODULE), 1) end)),
    ok = on(B, fun() -> logger:remove_handler(?MODULE) end).

%% A handler of logger: counts the lines about messages that cannot be read.
log(#{msg := {string, Text}}, _) ->
    case string:find(Text, "cannot be read") of
        nomatch -> ok;
        _ -> counters:add(persistent_term:get(?MODULE), 1, 1)
    end;
log(_, _) -> ok.

%% Given messages of each class, expect the figures of both nodes to tell of them.
figures(Config) ->
    [#{node := NodeA} = A, #{node := NodeB} = B] = ?config(nodes, Config),
    ok = collector(B, figures),
    Of = fun(N) -> maps:get(messages, on(N, fun chatter:info/0)) end,
    #{sent := #{high := High, normal := Normal, low := Low}} = Of(A),
    #{received := #{high := GotHigh, normal := GotNormal, low := GotLow}} = Of(B),
    on(A, fun() ->
                  [ok = chatter:send({figures, NodeB}, C, [{priority, C}])
                   || {N, C} <- [{1, high}, {2, normal}, {3, low}], _ <- lists:seq(1, N)],
                  {error, too_large} = chatter:send({figures, NodeB}, <<0:(65 bsl 23)>>, [])
          end),
    await_collected(B, figures, [high, normal, normal, low, low, low]),
    ?assertMatch(#{sent := #{high := H, normal := N, low := L}, channels_out := 1, channels_in := 1,
                   late := _, full := _, unreachable := _, too_large := 1, unreadable := _,
                   calls := _, calls_running := _}
                   when {H, N, L} =:= {High + 1, Normal + 2, Low + 3}, Of(A)),
    ?assertMatch(#{received := #{high := H, normal := N, low := L}}
                   when {H, N, L} =:= {GotHigh + 1, GotNormal + 2, GotLow + 3}, Of(B)),
    [begin
         #{connected := false, channels := Channels} = on(N, fun() -> chatter:info(Other) end),
         ?assertEqual([{messages, false}, {messages, true}],
                      lists:sort([{K, Here} || #{kind := K, opened_here := Here} <- Channels]))
     end || {N, Other} <- [{A, NodeB}, {B, NodeA}]].

%%% Back-pressure

%% Given a node that takes nothing for a while, expect senders to be held back, in bounded memory,
%% and everything in order when it goes on.
slow_receiver(_Config) ->
    [A, #{node := NodeB} = B] = linked(#{message_wait_ms => 60000}, #{}),
    ok = chatter_work:sink(B, slow),
    open_channel(A, NodeB),
    In = suspend_in(B),
    Senders = 8, Each = 100,
    Pids = on(A, fun() ->
                         Data = chatter_work:pattern(100000),
                         [spawn(fun() -> pour({slow, NodeB}, Id, 1, Each, Data) end)
                          || Id <- lists:seq(1, Senders)]
                 end),
    Waits = {current_function, {chatter_message_out, await_room, 3}},
    wait_until(fun() ->
                       on(A, fun() -> [process_info(P, current_function) || P <- Pids] end)
                           =:= [Waits || _ <- Pids]
               end, ?TIMEOUT_MS),
    [#{unacked_bytes := Unacked, waiting_bytes := Waiting}] =
        [C || #{opened_here := true} = C
                  <- maps:get(channels, on(A, fun() -> chatter:info(NodeB) end))],
    ?assert(Unacked + Waiting < 26 bsl 20),
    ?assertEqual({0, []}, chatter_work:seen(B, slow)),
    resume_in(B, In),
    chatter_work:await_seen({B, slow}, Senders * Each, 60000),
    %% Nobody is left waiting.
    ?assertEqual([], on(A, fun() -> [P || P <- Pids, is_process_alive(P)] end)).

%% Given a node that never takes anything, expect `full' when the wait is over, at once if
%% unreliable, nothing left behind by the senders, others with room of their own until the channel
%% has none, and traffic to another node to go on.
receiver_never_reads_channel(_Config) ->
    Keys = [{message_wait_ms, 500}, {channel_queue, 2 bsl 20}],
    A = start(a, #{links => static, chatter => Keys}),
    #{node := NodeB} = B = start(b, #{links => static, neighbours => [A]}),
    #{node := NodeC} = C = start(c, #{links => static, neighbours => [A]}),
    chatter_cluster:await_routes([A, B, C], ?TIMEOUT_MS),
    ok = collector(C, other),
    open_channel(A, NodeB),
    _ = suspend_in(B),
    on(A, fun() ->
                  {Sent, Micros} = fill({nobody, NodeB}, 0),
                  true = Sent >= 70 andalso Sent < 200,
                  true = Micros >= 450000 andalso Micros < 5000000,
                  Try = fun() -> chatter:send({nobody, NodeB}, <<0:800000>>, [unreliable]) end,
                  {Fast, {error, full}} = timer:tc(Try),
                  true = Fast < 400000,
                  {messages, []} = process_info(self(), messages),
                  {monitors, []} = process_info(self(), monitors),
                  ok = chatter:send({other, NodeC}, through, []),
                  NodeC = chatter:call(NodeC, erlang, node, [], 5000),
                  {error, {erpc, timeout}} =
                      outcome(chatter, call, [NodeB, erlang, node, [], 300])
          end),
    await_collected(C, other, [through]),
    %% One process over its quota is not the end of the channel; many are.
    Taken = on(A, fun() ->
                          {One, _} = fill({nobody, NodeB}, 0),
                          true = One >= 1,
                          Fill = fun() -> exit(fill({nobody, NodeB}, 0)) end,
                          Refs = [element(2, spawn_monitor(Fill)) || _ <- lists:seq(1, 300)],
                          [receive {'DOWN', Ref, _, _, {Sent, _}} -> Sent end || Ref <- Refs]
                  end),
    ct:pal("taken of each sender: ~w", [Taken]),
    ?assert(lists:member(0, Taken)),
    [#{unacked_bytes := Unacked, waiting_bytes := Waiting}] =
        [Ch || #{opened_here := true} = Ch
                   <- maps:get(channels, on(A, fun() -> chatter:info(NodeB) end))],
    ?assert(Unacked + Waiting < 26 bsl 20),
    #{messages := #{full := Full}} = on(A, fun chatter:info/0),
    ?assert(Full >= 2).

%% Sends until it is refused; how many were taken, and how long the last one waited.
fill(Dest, Sent) ->
    case timer:tc(fun() -> chatter:send(Dest, <<0:800000>>, []) end) of
        {_, ok} -> fill(Dest, Sent + 1);
        {Micros, {error, full}} -> {Sent, Micros}
    end.

%% Given deadlines and no room, expect the sender to wait no longer, and the messages counted.
deadlines(_Config) ->
    [A, #{node := NodeB} = B] = linked(#{message_wait_ms => 1000}, #{}),
    ok = collector(B, timely),
    open_channel(A, NodeB),
    In = suspend_in(B),
    on(A, fun() ->
                  {_, _} = fill({nobody, NodeB}, 0),
                  Send = fun() -> chatter:send({timely, NodeB}, late, [{deadline, 100}]) end,
                  {Micros, {error, full}} = timer:tc(Send),
                  true = Micros >= 90000 andalso Micros < 900000
          end),
    ?assertMatch(#{messages := #{late := 1}}, on(A, fun chatter:info/0)),
    resume_in(B, In),
    wait_until(fun() ->
                       ok =:= on(A, fun() -> chatter:send({timely, NodeB}, timely,
                                                          [{deadline, 5000}]) end)
               end, ?TIMEOUT_MS),
    await_collected(B, timely, [timely]).

%%% Ends

%% Given two ways and the death of the relay in use under messages and calls, expect all messages,
%% each sender's in order, and the result of every call.
killed_relay(_Config) ->
    A = start(a, #{links => static}),
    Relays = [start(R, #{links => static, neighbours => [A]}) || R <- [r1, r2]],
    #{node := NodeB} = B = start(b, #{links => static, neighbours => Relays}),
    chatter_cluster:await_routes([A, B | Relays], ?TIMEOUT_MS),
    ok = chatter_work:sink(B, steady),
    Senders = 8, Each = 2000, Callers = 8, Calls = 300,
    open_channel(A, NodeB),
    Pids = on(A, fun() ->
                         [spawn(fun() -> trickle({steady, NodeB}, Id, Each) end)
                          || Id <- lists:seq(1, Senders)]
                 end),
    Asked = on(A, fun() ->
                          [spawn(fun() ->
                                         Results = [outcome(chatter, call, [NodeB, ?MODULE, nap,
                                                                            [I rem 9], 20000])
                                                    || I <- lists:seq(1, Calls)],
                                         receive {tell, To} -> To ! {told, self(), Results} end
                                 end) || _ <- lists:seq(1, Callers)]
                  end),
    wait_until(fun() -> {N, _} = chatter_work:seen(B, steady), N > 1000 end, ?TIMEOUT_MS),
    {ok, [First, NodeB]} = on(A, fun() -> chatter:route(NodeB) end),
    {Seen, _} = chatter_work:seen(B, steady),
    ?assert(Seen < Senders * Each),
    ok = chatter_cluster:kill9(hd([R || #{node := N} = R <- Relays, N =:= First])),
    chatter_work:await_seen({B, steady}, Senders * Each, 60000),
    Told = on(A, fun() ->
                         [begin
                              Pid ! {tell, self()},
                              receive {told, Pid, Results} -> lists:usort(Results) end
                          end || Pid <- Asked]
                 end),
    ?assertEqual([[{return, slept}] || _ <- Asked], Told),
    ?assertEqual([], on(A, fun() -> [P || P <- Pids, is_process_alive(P)] end)).

%% About a message in each millisecond.
trickle(Dest, Id, Each) ->
    [begin
         ok = chatter:send(Dest, {Id, N, <<0:(8 * (N rem 7) * 1000)>>}, []),
         receive after 1 -> ok end
     end || N <- lists:seq(1, Each)].

%% Given a node that is killed, expect calls to it to end with noconnection at once and sends with
%% unreachable, and nothing kept of its channels.
killed_peer(_Config) ->
    [A, #{node := NodeB} = B] = linked(#{}, #{}),
    open_channel(A, NodeB),
    Callers = on(A, fun() ->
                            [spawn(fun() ->
                                           true = register(name(I), self()),
                                           O = outcome(chatter, call, [NodeB, timer, sleep,
                                                                       [infinity], infinity]),
                                           receive {tell, To} -> To ! {I, O} end
                                   end) || I <- lists:seq(1, 20)]
                    end),
    wait_until(fun() ->
                       20 =:= maps:get(calls_running, maps:get(messages, on(B, fun chatter:info/0)))
               end, ?TIMEOUT_MS),
    ok = chatter_cluster:kill9(B),
    Outcomes = on(A, fun() ->
                             [begin
                                  Caller ! {tell, self()},
                                  receive {_, O} -> O after 5000 -> no_answer end
                              end || Caller <- Callers]
                     end),
    ?assertEqual(lists:duplicate(20, {error, {erpc, noconnection}}), Outcomes),
    ?assertEqual({error, unreachable}, on(A, fun() -> chatter:send({x, NodeB}, m, []) end)),
    wait_until(fun() ->
                       Left = on(A, fun() ->
                                            {ets:tab2list(chatter_messages), serving(),
                                             maps:get(channels, chatter:info())}
                                    end),
                       Left =:= {[], [], 0} orelse Left
               end, ?TIMEOUT_MS).

name(I) -> list_to_atom("caller_" ++ integer_to_list(I)).

%% The processes that serve channels here.
serving() ->
    [P || P <- processes(), {initial_call, {M, _, _}} <- [process_info(P, initial_call)],
          lists:member(M, [chatter_message_in, chatter_message_out])].

%% Given messages under way to a node that is killed before it has taken them, and started again
%% under the same name, expect none of them to reach the new life, by name or identifier, and new
%% ones to.
former_life(_Config) ->
    [A, #{node := NodeB} = B] = linked(#{message_wait_ms => 300}, #{}),
    ok = collector(B, heir),
    Pid = on(B, fun() -> whereis(heir) end),
    open_channel(A, NodeB),
    _ = suspend_in(B),
    {Sent, _} = on(A, fun() -> fill({heir, NodeB}, 0) end),
    ?assert(Sent > 0),
    ok = chatter_cluster:kill9(B),
    chatter_cluster:stop(B),
    B2 = start(b, #{links => static, neighbours => [A]}),
    ?assertEqual(NodeB, maps:get(node, B2)),
    ok = collector(B2, heir),
    chatter_cluster:await_routes([A, B2], ?TIMEOUT_MS),
    %% Until then the tables may know the former life.
    wait_until(fun() -> on(A, fun() -> chatter:send({heir, NodeB}, new, []) end) =:= ok end,
               ?TIMEOUT_MS),
    _ = on(A, fun() -> chatter:send(Pid, by_former_identifier, []) end),
    wait_until(fun() -> on(A, fun() -> chatter:send({heir, NodeB}, last, []) end) =:= ok end,
               ?TIMEOUT_MS),
    wait_until(fun() -> lists:member(last, collected(B2, heir)) end, ?TIMEOUT_MS),
    ?assertEqual([new, last], collected(B2, heir)).

%% Given channels that are not used, expect them closed after a while, and others on demand; but not
%% under a call that takes longer.
unused_channels_are_closed(_Config) ->
    [A, #{node := NodeB} = B] = linked(#{message_idle_ms => 200}, #{message_idle_ms => 200}),
    Channels = fun() -> [chatter_work:channels(N) || N <- [A, B]] end,
    on(A, fun() ->
                  {Micros, slept} = timer:tc(fun() ->
                      chatter:call(NodeB, ?MODULE, nap, [1500], infinity) end),
                  true = Micros > 1500000
          end),
    wait_until(fun() -> Channels() =:= [0, 0] end, ?TIMEOUT_MS),
    ?assertEqual([[], []], [on(N, fun serving/0) || N <- [A, B]]),
    ok = collector(B, again),
    Expected = [begin
                    ok = on(A, fun() -> chatter:send({again, NodeB}, I, []) end),
                    timer:sleep(I * 20),
                    I
                end || I <- lists:seq(1, 25)],
    await_collected(B, again, Expected),
    wait_until(fun() -> Channels() =:= [0, 0] end, ?TIMEOUT_MS).

nap(Ms) -> receive after Ms -> slept end.

%% Given the death of each process of the messages, at either end, expect calls under way to be
%% told, and messages to arrive again afterwards.
processes_killed(_Config) ->
    [A, #{node := NodeB} = B] = linked(#{}, #{}),
    Victims = [{A, chatter_message_out}, {A, chatter_message_in}, {B, chatter_message_out},
               {B, chatter_message_in}, {A, chatter_messages}, {B, chatter_messages}],
    [begin
         %% The end of the channel before may still be on its way.
         wait_until(fun() -> on(A, fun() -> chatter:call(NodeB, erlang, node, [], 20000) end)
                                 =:= NodeB end, ?TIMEOUT_MS),
         Caller = on(A, fun() -> spawn(fun() ->
                             O = outcome(chatter, call,
                                         [NodeB, ?MODULE, nap, [infinity], infinity]),
                             receive {tell, To} -> To ! {told, O} end
                         end) end),
         wait_until(fun() ->
                            #{calls_running := N} = maps:get(messages, on(B, fun chatter:info/0)),
                            N > Before
                    end, ?TIMEOUT_MS),
         on(Where, fun() -> kill(Module) end),
         Told = on(A, fun() -> Caller ! {tell, self()}, receive {told, O} -> O end end),
         ?assertEqual({Module, {error, {erpc, noconnection}}}, {Module, Told})
     end || {Before, {Where, Module}} <- lists:zip([0, 1, 2, 3, 4, 5], Victims)],
    wait_until(fun() -> on(A, fun() -> chatter:call(NodeB, erlang, node, [], 20000) end)
                            =:= NodeB end, ?TIMEOUT_MS).

kill(chatter_messages) -> exit(whereis(chatter_messages), kill);
kill(Module) ->
    Call = {initial_call, {Module, init, 2}},
    [P] = [P || P <- serving(), process_info(P, initial_call) =:= Call],
    exit(P, kill).

%% Given the limits of channels and calls, expect what is over them to be refused.
limits(_Config) ->
    A = start(a, #{links => static, chatter => [{max_message_channels, 1}, {max_message, 65536}]}),
    #{node := NodeB} = B = start(b, #{links => static, neighbours => [A],
                                      chatter => [{max_calls, 3}]}),
    #{node := NodeC} = C = start(c, #{links => static, neighbours => [A]}),
    chatter_cluster:await_routes([A, B, C], ?TIMEOUT_MS),
    on(A, fun() ->
                  ok = chatter:send({x, NodeB}, m, []),
                  {error, full} = chatter:send({x, NodeC}, m, []),
                  {error, too_large} = chatter:send({x, NodeB}, <<0:(65530 * 8)>>, []),
                  {error, {erpc, system_limit}} =
                      outcome(chatter, call, [NodeB, lists, last, [[<<0:(65530 * 8)>>]], 5000]),
                  [spawn(fun() -> chatter:call(NodeB, timer, sleep, [infinity], infinity) end)
                   || _ <- lists:seq(1, 3)]
          end),
    wait_until(fun() ->
                       3 =:= maps:get(calls_running, maps:get(messages, on(B, fun chatter:info/0)))
               end, ?TIMEOUT_MS),
    ?assertEqual({error, {erpc, system_limit}},
                 on(A, fun() -> outcome(chatter, call, [NodeB, erlang, node, [], 5000]) end)).

%% Given `links = auto' and no route, expect a link to be dialled by the first message.
dials(_Config) ->
    A = start(a, #{}),
    #{node := NodeB} = B = start(b, #{}),
    ok = collector(B, dialled),
    ?assertEqual([], on(A, fun chatter:nodes/0)),
    ?assertEqual(ok, on(A, fun() -> chatter:send({dialled, NodeB}, here, []) end)),
    await_collected(B, dialled, [here]),
    ?assertEqual([[], []], [on(N, fun() -> nodes(connected) end) || N <- [A, B]]).

%% Given options for a process, expect what it sends over a connection to arrive, by class in the
%% figures, as before once they are taken back, and nothing to be kept of processes that have ended.
classes(_Config) ->
    [A, #{node := NodeB} = B] = linked(#{}, #{}),
    chatter_work:connect(A, B),
    ok = collector(B, classes),
    High = fun() ->
                   [#{packets := #{high := N}}] =
                       [C || #{kind := distribution} = C
                                 <- maps:get(channels, on(A, fun() -> chatter:info(NodeB) end))],
                   N
           end,
    Send = fun(Opts, From, To) ->
                   on(A, fun() ->
                                 ok = chatter:set_class(self(), Opts),
                                 [{classes, NodeB} ! I || I <- lists:seq(From, To)],
                                 chatter_nif:manners()
                         end)
           end,
    ?assertMatch([_], Send([{priority, high}, {deadline, 60000}], 1, 100)),
    await_collected(B, classes, lists:seq(1, 100)),
    Before = High(),
    ?assert(Before > 0),
    wait_until(fun() -> on(A, fun chatter_nif:manners/0) =:= [] end, ?TIMEOUT_MS),
    ?assertEqual([], Send([], 101, 200)),
    await_collected(B, classes, lists:seq(1, 200)),
    ?assertEqual(Before, High()),
    on(A, fun() ->
                  {error, badarg} = outcome(chatter, set_class, [self(), [x]]),
                  {error, badarg} = outcome(chatter, set_class, [NodeB, []]),
                  Gone = spawn(fun() -> ok end),
                  ok = chatter:set_class(Gone, [unreliable])
          end),
    wait_until(fun() -> on(A, fun chatter_nif:manners/0) =:= [] end, ?TIMEOUT_MS).

%% Given reports of the native node that messages are lost (channel_loss.rs has how it comes to
%% them), expect subscribers to get them, as many as they have asked for, and connections to go on.
losses_are_told(_Config) ->
    Keys = #{on_loss => notify},
    [#{node := NodeA} = A, #{node := NodeB} = B] = linked(Keys, Keys),
    chatter_work:connect(A, B),
    ok = collector(A, losses),
    on(A, fun() ->
                  Self = self(),
                  Report = fun(Sender, Count) ->
                                   Event = {lost, atom_to_binary(NodeB), Sender, Count},
                                   chatter_node ! {chatter_event, Event}
                           end,
                  Pid = spawn(fun() ->
                                      ok = chatter:subscribe(chatter_lost, 2),
                                      Self ! subscribed,
                                      [receive
                                           M when element(1, M) =:= chatter_lost;
                                                  element(1, M) =:= chatter_broadcast_passive ->
                                               losses ! M
                                       end || _ <- [1, 2, 3]],
                                      receive stop -> ok end
                              end),
                  receive subscribed -> ok end,
                  _ = Report({88, 3}, 5),
                  _ = Report({0, 0}, 7),
                  _ = Report({89, 0}, 1),
                  Pid ! stop
          end),
    await_collected(A, losses, [{chatter_lost, NodeB, {88, 3}, 5}, {chatter_lost, NodeB, other, 7},
                                {chatter_broadcast_passive, chatter_lost}]),
    ?assertMatch(#{channels := [#{lost := 0, lost_in := 0} | _]},
                 on(A, fun() -> chatter:info(NodeB) end)),
    ?assertEqual([NodeA], on(B, fun() -> nodes() end)).

%%% Helpers

outcome(M, F, Args) ->
    try {return, apply(M, F, Args)}
    catch Class:Reason -> {Class, Reason}
    end.

open_channel(A, NodeB) ->
    ok = on(A, fun() -> chatter:send({nobody, NodeB}, open, []) end),
    NodeB = on(A, fun() -> chatter:call(NodeB, erlang, node, [], 20000) end).

%% On a node that one other writes to: the process that takes its messages, suspended.
suspend_in(Peer) ->
    on(Peer, fun() ->
                     [In] = [P || P <- serving(), process_info(P, initial_call) =:=
                                      {initial_call, {chatter_message_in, init, 2}}],
                     Self = self(),
                     Holder = spawn(fun() ->
                                            true = erlang:suspend_process(In),
                                            Self ! held,
                                            receive resume -> erlang:resume_process(In) end
                                    end),
                     receive held -> Holder end
             end).

resume_in(Peer, Holder) -> on(Peer, fun() -> Holder ! resume end).

pour_all({Pid, Name}, Senders, Each) ->
    Payloads = [chatter_work:pattern(N) || N <- [10, 0, 300, 5000]],
    [spawn(fun() -> pour([Pid, Name], {node(), Id}, 1, Each, Payloads) end)
     || Id <- lists:seq(1, Senders)].

%% To the same process in turns by its identifier and its name.
pour(_, _, N, Each, _) when N > Each -> ok;
pour([Dest | Dests], Id, N, Each, [Data | Datas]) ->
    ok = chatter:send(Dest, {Id, N, Data}, []),
    pour(Dests ++ [Dest], Id, N + 1, Each, Datas ++ [Data]);
pour(Dest, Id, N, Each, Data) ->
    ok = chatter:send(Dest, {Id, N, Data}, []),
    pour(Dest, Id, N + 1, Each, Data).

%% A process of that name that keeps what it gets.
collector(Peer, Name) ->
    on(Peer, fun() ->
                     Self = self(),
                     spawn(fun() ->
                                   true = register(Name, self()),
                                   Self ! collecting,
                                   collect([])
                           end),
                     receive collecting -> ok end
             end).

collect(Got) ->
    receive
        {collected, From, Fun} ->
            From ! {collected, lists:map(Fun, lists:reverse(Got))},
            collect(Got);
        Message -> collect([Message | Got])
    end.

collected(Peer, Name) -> collected(Peer, Name, fun(Message) -> Message end).

collected(Peer, Name, Fun) ->
    on(Peer, fun() -> Name ! {collected, self(), Fun}, receive {collected, Got} -> Got end end).

await_collected(Peer, Name, Expected) ->
    wait_until(fun() -> length(collected(Peer, Name)) >= length(Expected) orelse
                            collected(Peer, Name) end, ?TIMEOUT_MS),
    ?assertEqual(Expected, collected(Peer, Name)).
