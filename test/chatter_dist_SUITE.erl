%% Two directly linked nodes at work: signals, sizes, order, ticks, back-pressure.
%% How connections end is in chatter_ends_SUITE, how nodes start in chatter_modes_SUITE.
-module(chatter_dist_SUITE).
-behaviour(ct_suite).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_work, [on/2, on/3, pattern/1]).
-import(chatter_cluster, [wait_until/2]).

-define(TIMEOUT_MS, 10000).
-define(GET(Pattern),
        receive Pattern -> ok
        after ?TIMEOUT_MS -> error({missing, ??Pattern, process_info(self(), messages)})
        end).

suite() -> [{timetrap, {seconds, 60}}].

all() -> [{group, pair}, many_monitors, ticks, back_pressure, the_culprits_alone_are_held,
          bulk_alone, scarce_processors, one_scheduler].

groups() ->
    [{pair, [], [links_and_exits, monitors, spawn_requests, calls, names_and_aliases,
                 group_leader_output, global_names, process_groups, sizes, half_a_gibibyte,
                 big_while_pending, order_of_mixed_sizes, atoms_that_share_places,
                 simultaneous_connects,
                 views_of_the_kernel, schedulers_are_not_held]}].

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

init_per_group(pair, Config) ->
    Nodes = chatter_work:shared(fun chatter_work:pair/0),
    [{pair, Nodes} | Config].

end_per_group(pair, _Config) -> chatter_cluster:stop_all().

init_per_testcase(_Case, Config) -> Config.

end_per_testcase(Case, _Config) ->
    case lists:member(Case, all()) of
        true -> chatter_cluster:stop_all();
        false -> ok
    end.

%%% Signals

%% Given processes linked across the connection, expect exits, exit/2 and unlink to do there
%% what they do within a node.
links_and_exits(Config) ->
    [A, #{node := NodeB}] = ?config(pair, Config),
    on(A, fun() ->
                  process_flag(trap_exit, true),
                  P1 = spawn_link(NodeB, fun() -> receive Reason -> exit(Reason) end end),
                  P1 ! bye,
                  ?GET({'EXIT', P1, bye}),
                  P2 = spawn_link(NodeB, fun idle/0),
                  exit(P2, go),
                  ?GET({'EXIT', P2, go}),
                  P3 = spawn_link(NodeB, fun idle/0),
                  true = unlink(P3),
                  exit(P3, kill),
                  Ref = monitor(process, P3),
                  ?GET({'DOWN', Ref, process, P3, _}),
                  ?assertEqual({messages, []}, process_info(self(), messages)),
                  P4 = spawn(NodeB, fun idle/0),
                  true = link(P4),
                  exit(P4, kill),
                  ?GET({'EXIT', P4, killed}),
                  link(P4),
                  ?GET({'EXIT', P4, noproc})
          end).

%% Given monitors by pid and by name, expect one DOWN each, none after demonitor.
monitors(Config) ->
    [A, #{node := NodeB}] = ?config(pair, Config),
    on(A, fun() ->
                  Self = self(),
                  P1 = spawn(NodeB, fun() -> register(watched, self()), Self ! up, idle() end),
                  ?GET(up),
                  R1 = monitor(process, P1),
                  R2 = monitor(process, {watched, NodeB}),
                  R3 = monitor(process, P1),
                  true = demonitor(R3, [flush]),
                  exit(P1, {big, pattern(200000)}),
                  ?GET({'DOWN', R1, process, P1, {big, <<_:200000/binary>>}}),
                  ?GET({'DOWN', R2, process, {watched, NodeB}, {big, _}}),
                  R4 = monitor(process, {nobody_here, NodeB}),
                  ?GET({'DOWN', R4, process, {nobody_here, NodeB}, noproc}),
                  ?assertEqual({messages, []}, process_info(self(), messages))
          end).

%% Given spawn_request and spawn_monitor, expect the reply, the DOWN, and an error for what
%% cannot be started.
spawn_requests(Config) ->
    [A, #{node := NodeB}] = ?config(pair, Config),
    on(A, fun() ->
                  Id = spawn_request(NodeB, fun() -> exit(done) end,
                                     [{monitor, [{tag, there}]}, {reply_tag, started}]),
                  Pid = receive {started, Id, ok, P} -> P after ?TIMEOUT_MS -> none end,
                  ?GET({there, Id, process, Pid, done}),
                  {P2, R2} = spawn_monitor(NodeB, erlang, node, []),
                  ?GET({'DOWN', R2, process, P2, normal}),
                  Bad = spawn_request(NodeB, erlang, halt, [], [{min_heap_size, none}]),
                  ?GET({spawn_reply, Bad, error, badopt}),
                  Large = pattern(300000),
                  Self = self(),
                  spawn(NodeB, fun() -> Self ! {sum, erlang:crc32(Large)} end),
                  Sum = erlang:crc32(Large),
                  ?GET({sum, Sum})
          end).

%% Given rpc, erpc and a gen_server by name, expect results and errors as stock gives them.
calls(Config) ->
    [A, #{node := NodeB}] = ?config(pair, Config),
    on(A, fun() ->
                  ?assertEqual(NodeB, rpc:call(NodeB, erlang, node, [])),
                  ?assertMatch({badrpc, {'EXIT', {oops, _}}},
                               rpc:call(NodeB, erlang, error, [oops])),
                  ?assertEqual(NodeB, erpc:call(NodeB, erlang, node, [])),
                  ?assertError({exception, oops, _}, erpc:call(NodeB, erlang, error, [oops])),
                  ?assertError({erpc, timeout}, erpc:call(NodeB, timer, sleep, [5000], 50)),
                  Requests = [erpc:send_request(NodeB, erlang, abs, [-I])
                              || I <- lists:seq(1, 500)],
                  ?assertEqual(lists:seq(1, 500),
                               [erpc:receive_response(R, ?TIMEOUT_MS) || R <- Requests]),
                  ?assertEqual({[NodeB], []}, rpc:multicall([NodeB], erlang, node, [])),
                  ?assert(is_list(gen_server:call({kernel_safe_sup, NodeB}, which_children))),
                  ?assertExit({noproc, _}, gen_server:call({nobody_here, NodeB}, hello))
          end).

%% Given sends by registered name and by alias, expect delivery while the alias is active.
names_and_aliases(Config) ->
    [A, #{node := NodeB}] = ?config(pair, Config),
    on(A, fun() ->
                  Echo = fun() -> register(echo, self()), echo() end,
                  Pid = spawn(NodeB, Echo),
                  wait_until(fun() -> Pid =:= erpc:call(NodeB, erlang, whereis, [echo]) end,
                             ?TIMEOUT_MS),
                  Alias = alias(),
                  {echo, NodeB} ! {Alias, one},
                  ?GET({echo, one}),
                  true = unalias(Alias),
                  Pid ! {Alias, two},
                  Pid ! {self(), three},
                  ?GET({echo, three}),
                  ?assertEqual({messages, []}, process_info(self(), messages)),
                  Ref = monitor(process, Pid, [{alias, reply_demonitor}]),
                  Pid ! {Ref, four},
                  ?GET({echo, four}),
                  ok = erlang:send({echo, NodeB}, {self(), five}, [noconnect]),
                  ?GET({echo, five}),
                  exit(Pid, kill)
          end).

%% Given a process whose group leader is on the other node, expect its output there.
group_leader_output(Config) ->
    [A, #{node := NodeB}] = ?config(pair, Config),
    on(A, fun() ->
                  {ok, Leader} = file:open("/dev/null", [read]), % only so that io has a device
                  ok = file:close(Leader),
                  Self = self(),
                  spawn(NodeB, fun() ->
                                       group_leader(Self, self()),
                                       io:put_chars("from afar"),
                                       Self ! written
                               end),
                  receive
                      {io_request, From, ReplyAs, {put_chars, unicode, Chars}} ->
                          ?assertEqual("from afar", unicode:characters_to_list(Chars)),
                          From ! {io_reply, ReplyAs, ok}
                  after ?TIMEOUT_MS -> error(no_io_request)
                  end,
                  ?GET(written)
          end).

%% Given a name registered in `global' on one node, expect the other to find it, and to lose
%% it with the process.
global_names(Config) ->
    [A, #{node := NodeB}] = ?config(pair, Config),
    on(A, fun() ->
                  ok = global:sync(),
                  Pid = spawn(fun idle/0),
                  yes = global:register_name(a_name, Pid),
                  ?assertEqual(Pid, erpc:call(NodeB, global, whereis_name, [a_name])),
                  ?assertEqual(no, erpc:call(NodeB, global, register_name,
                                             [a_name, whereis(kernel_sup)])),
                  true = global:set_lock({a_lock, self()}, [node(), NodeB]),
                  ?assertEqual(false, erpc:call(NodeB, global, set_lock,
                                                [{a_lock, other}, [node(), NodeB], 0])),
                  true = global:del_lock({a_lock, self()}, [node(), NodeB]),
                  exit(Pid, kill),
                  wait_until(fun() ->
                                     undefined =:= erpc:call(NodeB, global, whereis_name, [a_name])
                             end, ?TIMEOUT_MS)
          end).

%% Given members of a pg group on both nodes, expect both nodes to see all of them.
process_groups(Config) ->
    [A, #{node := NodeB} = B] = ?config(pair, Config),
    [on(N, fun() -> {Pid, _} = spawn_monitor(fun() -> {ok, _} = pg:start_link(), idle() end),
                    wait_until(fun() -> is_pid(whereis(pg)) end, ?TIMEOUT_MS), Pid
           end) || N <- [A, B]],
    on(A, fun() ->
                  Here = spawn(fun idle/0),
                  There = spawn(NodeB, fun idle/0),
                  ok = pg:join(a_group, Here),
                  ok = erpc:call(NodeB, pg, join, [a_group, There]),
                  All = lists:sort([Here, There]),
                  [wait_until(fun() ->
                                      All =:= lists:sort(erpc:call(N, pg, get_members, [a_group]))
                              end, ?TIMEOUT_MS) || N <- [node(), NodeB]],
                  exit(There, kill),
                  wait_until(fun() -> [Here] =:= pg:get_members(a_group) end, ?TIMEOUT_MS)
          end).

%%% Sizes and order

%% Given messages of 0 bytes to 64 MiB, expect each back as it was.
sizes(Config) ->
    [A, #{node := NodeB}] = ?config(pair, Config),
    Sizes = [0, 1, 63, 64, 65, 255, 4096, 16383, 16384, 16385, 65535, 65536, 65537, 131072,
             1 bsl 20, 8 bsl 20 + 1, 64 bsl 20 | lists:seq(3960, 4100, 4)],
    on(A, fun() ->
                  Echo = spawn_link(NodeB, fun echo/0),
                  [begin
                       Data = pattern(Size),
                       Echo ! {self(), Data},
                       receive {echo, Back} -> ?assertEqual(erlang:crc32(Data), erlang:crc32(Back)),
                                               ?assertEqual(Size, byte_size(Back))
                       after ?TIMEOUT_MS -> error({no_echo, Size})
                       end
                   end || Size <- Sizes],
                  Terms = lists:duplicate(300, {a_tuple, lists:seq(1, 1000), #{k => 1.5}}),
                  Echo ! {self(), Terms},
                  ?GET({echo, Terms}),
                  unlink(Echo), exit(Echo, kill)
          end).

%% Given one message of 512 MiB, expect it to arrive whole.
half_a_gibibyte(Config) ->
    [A, #{node := NodeB} = B] = ?config(pair, Config),
    T0 = chatter_work:now_ms(),
    on(A, fun() ->
                  Data = binary:copy(pattern(1 bsl 20), 512),
                  Self = self(),
                  Sum = fun(Bytes) -> {byte_size(Bytes), erlang:crc32(Bytes)} end,
                  Pid = spawn_link(NodeB, fun() -> receive Got -> Self ! Sum(Got) end end),
                  Pid ! Data,
                  Expected = Sum(Data),
                  receive Expected -> ok after 40000 -> error(not_arrived) end
          end),
    ct:pal("512 MiB in ~b ms", [chatter_work:now_ms() - T0]),
    [on(N, fun() -> [garbage_collect(P) || P <- processes()], ok end) || N <- [A, B]].

%% Given no connection, expect a send to a name to make it, and a large message that was
%% encoded before it was there to arrive first and whole.
big_while_pending(Config) ->
    [A, #{node := NodeB} = B] = ?config(pair, Config),
    Size = 16 bsl 20,
    on(B, fun() ->
                  Self = self(),
                  spawn(fun() ->
                                register(first, self()),
                                Self ! ready,
                                First = receive M1 -> M1 end,
                                Second = receive M2 -> M2 end,
                                receive {tell, To} -> To ! {got, First, Second} end
                        end),
                  ?GET(ready)
          end),
    chatter_work:disconnect(A, B),
    on(A, fun() ->
                  Big = pattern(Size),
                  {first, NodeB} ! {big, Big},
                  {first, NodeB} ! small,
                  {first, NodeB} ! {tell, self()},
                  receive {got, {big, Got}, small} -> ?assertEqual(erlang:crc32(Big),
                                                                   erlang:crc32(Got))
                  after ?TIMEOUT_MS -> error(not_arrived)
                  end
          end).

%% Given many senders with small and large messages in turn, by name, expect each sender's
%% messages in order and all of them.
order_of_mixed_sizes(Config) ->
    [A, #{node := NodeB} = B] = ?config(pair, Config),
    ok = chatter_work:sink(B, mixed),
    _ = chatter_work:flood(A, {mixed, NodeB}, {20, 500}, [0, 10, 70000, 100, 5000, 200000, 1]),
    chatter_work:await_seen({B, mixed}, 20 * 500, 40000).

%% Given messages of some processes with atoms that share places in the cache of the VM, expect each
%% to be told by name what it sent, and, once every atom has been there, next to none of the
%% messages to be in order with all others.
atoms_that_share_places(Config) ->
    [A, #{node := NodeB}] = ?config(pair, Config),
    Fences = fun() ->
                     #{channels := Channels} = chatter:info(NodeB),
                     lists:sum([N || #{kind := distribution, fences := N} <- Channels])
             end,
    [Before, Between, After] =
        on(A, fun() ->
                      %% The place follows from the number, modulo 2,048.
                      All = [list_to_atom("shared_place_" ++ integer_to_list(I))
                             || I <- lists:seq(1, 2200)],
                      Atoms = list_to_tuple(lists:sublist(All, 100) ++ lists:nthtail(2000, All)),
                      Round = fun() -> named(NodeB, Atoms), Fences() end,
                      [Fences(), Round(), Round()]
              end, 30000),
    ?assert(Between - Before < 1000, {Before, Between}),
    ?assert(After - Between < 100, {Between, After}).

%% Eight processes each send 2,000 atoms, two at a time, and get their names.
named(Node, Atoms) ->
    Pids = [spawn_monitor(
              fun() ->
                      Echo = spawn_link(Node, fun name/0),
                      [begin
                           Pair = {pick(Atoms), pick(Atoms)},
                           Echo ! {self(), Pair},
                           {X, Y} = names(Pair),
                           ?GET({names, {Pair, X, Y}})
                       end || _ <- lists:seq(1, 1000)],
                      unlink(Echo),
                      exit(Echo, kill)
              end) || _ <- lists:seq(1, 8)],
    [?GET({'DOWN', Ref, process, Pid, normal}) || {Pid, Ref} <- Pids].

name() ->
    receive
        {From, Pair} ->
            {X, Y} = names(Pair),
            From ! {names, {Pair, X, Y}},
            name()
    end.

names({X, Y}) -> {atom_to_list(X), atom_to_list(Y)}.

pick(Tuple) -> element(rand:uniform(tuple_size(Tuple)), Tuple).

%%% The connection as net_kernel has it

%% Given both nodes dialling each other at the same instant, again and again, expect one
%% connection each time, that works in both directions, and no channel too many.
simultaneous_connects(Config) ->
    [#{node := NodeA} = A, #{node := NodeB} = B] = ?config(pair, Config),
    Dial = fun(Node, At) ->
                   fun() ->
                           [spawn(fun() -> spin(At), net_kernel:connect_node(Node) end)
                            || _ <- [1, 2, 3]],
                           spin(At),
                           {net_kernel:connect_node(Node), erpc:call(Node, erlang, node, [], 9000)}
                   end
           end,
    [begin
         chatter_work:disconnect(A, B),
         At = os:system_time(microsecond) + 30000,
         Self = self(),
         spawn_link(fun() -> Self ! {b, on(B, Dial(NodeA, At))} end),
         ?assertEqual({Round, {true, NodeB}}, {Round, on(A, Dial(NodeB, At))}),
         receive {b, FromB} -> ?assertEqual({Round, {true, NodeA}}, {Round, FromB}) end
     end || Round <- lists:seq(1, 40)],
    [wait_until(fun() -> case chatter_work:channels(N) of 1 -> true; C -> C end end, ?TIMEOUT_MS)
     || N <- [A, B]].

%% Given a connection, expect net_kernel's own views of it to name the carrier.
views_of_the_kernel(Config) ->
    [A, #{node := NodeB}] = ?config(pair, Config),
    on(A, fun() ->
                  {ok, Infos} = net_kernel:nodes_info(),
                  {NodeB, Info} = lists:keyfind(NodeB, 1, Infos),
                  ?assertEqual(up, proplists:get_value(state, Info)),
                  ?assertEqual(normal, proplists:get_value(type, Info)),
                  ?assert(is_pid(proplists:get_value(owner, Info))),
                  {ok, Address} = net_kernel:node_info(NodeB, address),
                  ?assertEqual(net_address, element(1, Address)),
                  ?assertEqual(chatter, element(4, Address)),
                  {ok, In} = net_kernel:node_info(NodeB, in),
                  ?assert(is_integer(In)),
                  ?assertMatch({error, enotsup}, net_kernel:getopts(NodeB, [nodelay])),
                  ?assertMatch(#{reachable := true, connected := true, channels := [_]},
                               chatter:info(NodeB))
          end).

%% Given a load, expect that no process of Chatter keeps a scheduler for more than 20 ms (the
%% bar is 1 ms). An event counts the time that others on this machine take as well, so one
%% clean round of three is enough: what the code itself holds up shows in every round.
schedulers_are_not_held(Config) ->
    [A, #{node := NodeB} = B] = ?config(pair, Config),
    Rounds = [long_schedules(A, B, NodeB, Round) || Round <- [1, 2, 3]],
    ?assert(lists:min(Rounds) =< 20, Rounds).

%% The longest time in milliseconds that a process of Chatter was scheduled in, in one round.
long_schedules(A, B, NodeB, Round) ->
    Name = list_to_atom("long_schedules" ++ integer_to_list(Round)),
    [on(N, fun() ->
                   Self = self(),
                   spawn(fun() ->
                                 register(Name, self()),
                                 erlang:system_monitor(self(), [{long_schedule, 1}]),
                                 Self ! monitored,
                                 collect([])
                         end),
                   ?GET(monitored)
           end) || N <- [A, B]],
    Sink = list_to_atom("loaded" ++ integer_to_list(Round)),
    ok = chatter_work:sink(B, Sink),
    _ = chatter_work:flood(A, {Sink, NodeB}, {8, 10000}, [100, 0, 4000]),
    chatter_work:await_seen({B, Sink}, 80000, 20000),
    Events = lists:append([collected(N, Name) || N <- [A, B]]),
    Ours = [{Ms, Where} || {Ms, Where} <- Events,
                           match =:= re:run(Where, "chatter_(nif|dist_ctrl)", [{capture, none}])],
    ct:pal("long schedules over 1 ms: ~b, of Chatter: ~b, longest: ~p",
           [length(Events), length(Ours), lists:sublist(lists:reverse(lists:sort(Ours)), 3)]),
    lists:max([0 | [Ms || {Ms, _} <- Ours]]).

%% Given 100,000 processes of another node, each monitored, expect a DOWN for each when that
%% node is killed.
many_monitors(_Config) ->
    [A, #{node := NodeB} = B] = chatter_work:pair(),
    Count = 100000,
    Self = self(),
    spawn_link(fun() ->
                       Self ! {downs, on(A, fun() -> monitor_all(NodeB, Count) end)}
               end),
    wait_until(fun() -> on(A, fun() -> is_pid(whereis(monitored)) end) end, 40000),
    ok = chatter_cluster:kill9(B),
    receive {downs, Downs} -> ?assertEqual(Count, Downs) end,
    ?assertEqual([], on(A, fun() -> nodes() end)).

%% Given a tick time of one second, expect an idle connection to stay up for several, and
%% neither channel to send anything meanwhile: the link state answers for the other node.
ticks(_Config) ->
    Nodes = [A, #{node := NodeB} = B] =
        chatter_work:pair(#{args => ["-kernel", "net_ticktime", "1"]}),
    ok = chatter_work:watch(A),
    Figures = fun() -> [on(N, fun() -> [maps:with([frames_out, bytes_out, grants], C)
                                        || Other <- nodes(),
                                           C <- maps:get(channels, chatter:info(Other))]
                              end) || N <- Nodes]
              end,
    Settled = wait_until(fun() -> X = Figures(), quiet_for(300),
                                  case Figures() of X -> {ok, X}; Y -> {X, Y} end end, ?TIMEOUT_MS),
    quiet_for(4500), % the time itself is under test
    ?assertEqual(Settled, Figures()),
    ?assertEqual([], chatter_work:events(A)),
    ?assertEqual([NodeB], on(A, fun() -> nodes() end)),
    ?assertEqual(1, chatter_work:channels(B)).

%% Given a receiving node that takes nothing, expect senders to be suspended and to be told
%% so as stock tells them, memory to stay bounded, and nothing to be lost afterwards.
back_pressure(_Config) ->
    [A, #{node := NodeB} = B] = chatter_work:pair(#{chatter => [{flow_backpressure, channel}]}),
    on(A, fun() ->
                  spawn(fun() -> register(busy, self()),
                                 erlang:system_monitor(self(), [busy_dist_port]), collect([])
                        end), ok
          end),
    flooded(A, B, {4000, 16000}, fun() ->
        ?assertEqual(nosuspend, try_send(A, {slow, NodeB})),
        ?assertMatch([_ | _], collected(A, busy))
    end).

%% The same with flows held back by themselves: others can still send. (What a process hands over
%% in one slice of a scheduler is not much here; large messages would fill the channel before.)
the_culprits_alone_are_held(_Config) ->
    [A, #{node := NodeB} = B] = chatter_work:pair(),
    flooded(A, B, {40000, 1000}, fun() -> ?assertEqual(ok, try_send(A, {nobody, NodeB})) end).

%% Given bulk alone between two nodes, expect the threads of the carrier to wait for their turns
%% when they are woken, not while small messages go beside it, and then again.
bulk_alone(_Config) ->
    [A, #{node := NodeB} = B] = Nodes = chatter_work:pair(),
    Sink = on(B, fun() -> spawn(fun discard/0) end),
    _ = on(A, fun() -> spawn(fun() -> repeat(Sink, pattern(1000000)) end) end),
    Await = fun(Expected) ->
                    wait_until(fun() ->
                                       Now = [batch_threads(Node) > 0 || Node <- Nodes],
                                       Now =:= [Expected, Expected] orelse {is, Now}
                               end, ?TIMEOUT_MS)
            end,
    Await(true),
    Asker = on(A, fun() -> spawn(fun() -> ask(NodeB) end) end),
    Await(false),
    true = on(A, fun() -> exit(Asker, kill) end),
    Await(true).

%% Given bulk alone and busy processors, expect threads of the carrier to be sent to the processor
%% of the scheduler that they work for, and to be let go when there is no bulk any more.
scarce_processors(_Config) ->
    [All] = processors(os:getpid(), ""),
    case string:to_integer(All) of
        {_, ""} -> {skip, "one processor"};
        _ -> sent_and_let_go(All)
    end.

sent_and_let_go(All) ->
    [A, B] = Nodes = chatter_work:pair(),
    Sink = on(B, fun() -> spawn(fun discard/0) end),
    [on(Node, fun() -> [spawn(fun burn/0) || _ <- lists:seq(1, erlang:system_info(schedulers))] end)
     || Node <- Nodes],
    Senders = on(A, fun() -> [spawn(fun() -> repeat(Sink, pattern(4096)) end) ||
                              _ <- lists:seq(1, 4)] end),
    Sets = fun() -> [processors(chatter_cluster:os_pid(Node), "chatter-") || Node <- Nodes] end,
    Free = fun() -> Sets() =:= [[All], [All]] end,
    wait_until(fun() -> not Free() end, ?TIMEOUT_MS),
    _ = on(A, fun() -> [exit(Sender, kill) || Sender <- Senders] end),
    wait_until(Free, ?TIMEOUT_MS),
    receive after 1000 -> ?assert(Free()) end.

burn() -> burn().

discard() -> receive _ -> discard() end.

repeat(To, Message) -> To ! Message, repeat(To, Message).

ask(Node) ->
    _ = erpc:call(Node, erlang, node, []),
    receive after 1 -> ask(Node) end.

%% Where the threads of a process may run whose names begin so: lists as the kernel writes them.
processors(OsPid, Name) ->
    Files = filelib:wildcard("/proc/" ++ OsPid ++ "/task/*/status"),
    Texts = [Text || {ok, Text} <- [file:read_file(File) || File <- Files],
                     string:prefix(Text, "Name:\t" ++ Name) =/= nomatch],
    Option = [multiline, {capture, all_but_first, list}],
    lists:usort([Set || Text <- Texts,
                        {match, [Set]} <- [re:run(Text, "^Cpus_allowed_list:\t(.*)$", Option)]]).

%% Threads of the carrier with the policy SCHED_BATCH (3, in proc(5) field 41 of stat).
batch_threads(Node) ->
    Files = filelib:wildcard("/proc/" ++ chatter_cluster:os_pid(Node) ++ "/task/*/stat"),
    Stats = [string:split(Stat, ") ", trailing) || {ok, Stat} <- [file:read_file(F) || F <- Files]],
    length([batch || [Name, Rest] <- Stats, string:find(Name, "(chatter-") =/= nomatch,
                     lists:nth(39, string:lexemes(Rest, " ")) =:= <<"3">>]).

%% Given nodes with one scheduler and a stream of small messages, expect the receiver to get its
%% turns: its mailbox stays short. (It got all 400,000, and then took 19 us for each of them.)
one_scheduler(_Config) ->
    [A, B] = chatter_work:pair(#{args => ["+S", "1:1"]}),
    Count = 400000,
    Sink = on(B, fun() -> spawn(?MODULE, counting, [Count, 0, 0]) end),
    Longest = on(A, fun() ->
                            Msg = {message, pattern(100)},
                            [Sink ! Msg || _ <- lists:seq(1, Count)],
                            Sink ! {longest, self()},
                            receive {longest, Longest} -> Longest end
                    end, 50000),
    ct:pal("longest mailbox: ~b", [Longest]),
    ?assert(Longest < 100000).

%% Answers with the length of its longest mailbox, looked at for every 1,000th message.
counting(Left, Seen, Longest) when Seen =:= 1000 ->
    {message_queue_len, Length} = process_info(self(), message_queue_len),
    counting(Left, 0, max(Longest, Length));
counting(Left, Seen, Longest) ->
    receive
        {message, _} -> counting(Left - 1, Seen + 1, Longest);
        {longest, From} when Left =:= 0 -> From ! {longest, Longest}
    end.

try_send(Peer, To) ->
    on(Peer, fun() -> erlang:send(To, {x, 1, y}, [nosuspend]) end).

%% B takes nothing, and eight processes of A send so many messages of so many bytes each, until all
%% are suspended; then Fun.
flooded(#{node := NodeA} = A, #{node := NodeB} = B, {Count, Size}, Fun) ->
    ok = chatter_work:sink(B, slow),
    Before = [chatter_work:rss(N) || N <- [A, B]],
    on(B, fun() ->
                  Self = self(),
                  spawn(fun() ->
                                register(brake, self()),
                                Input = chatter_work:connection(NodeA, input),
                                true = erlang:suspend_process(Input),
                                Self ! suspended,
                                receive release -> erlang:resume_process(Input) end
                        end),
                  ?GET(suspended)
          end),
    Senders = chatter_work:flood(A, {slow, NodeB}, {8, Count}, [Size]),
    Held = fun() -> lists:all(fun(P) -> {status, suspended} =:= process_info(P, status) end,
                              Senders)
           end,
    %% For good, not while the controller fetches what the VM has queued.
    Stays = fun() -> [] =:= [not_held || _ <- lists:seq(1, 10), not Held() orelse pause(50)] end,
    wait_until(fun() -> on(A, Stays, 10000) end, 20000),
    Fun(),
    Grown = [chatter_work:rss(N) - Was || {N, Was} <- lists:zip([A, B], Before)],
    ct:pal("memory of sender and receiver grew by ~w MiB", [Grown]),
    ?assert(lists:max(Grown) < 100),
    ?assertEqual({0, []}, chatter_work:seen(B, slow)),
    on(B, fun() -> brake ! release, ok end),
    chatter_work:await_seen({B, slow}, 8 * Count, 40000).

pause(Ms) -> receive after Ms -> false end.

collected(Peer, Name) ->
    on(Peer, fun() -> Name ! {events, self()}, receive {events, Events} -> Events end end).

%%% What runs on the nodes

idle() -> receive after infinity -> ok end.

echo() ->
    receive {To, Message} -> To ! {echo, Message} end,
    echo().

spin(AtMicros) ->
    case os:system_time(microsecond) < AtMicros of
        true -> spin(AtMicros);
        false -> ok
    end.

quiet_for(Ms) -> receive after Ms -> ok end.

monitor_all(Node, Count) ->
    Pids = erpc:call(Node, fun() -> [spawn(fun idle/0) || _ <- lists:seq(1, Count)] end),
    Refs = [monitor(process, Pid) || Pid <- Pids],
    %% All monitors are in place when a later signal to the same node has been answered.
    Node = erpc:call(Node, erlang, node, []),
    true = register(monitored, self()),
    length([ok || Ref <- Refs, receive {'DOWN', Ref, process, _, noconnection} -> true
                               after 30000 -> false end]).

collect(Events) ->
    receive
        {monitor, Pid, long_schedule, Info} ->
            Where = lists:flatten(io_lib:format("~0p", [{Pid, Info}])),
            collect([{proplists:get_value(timeout, Info), Where} | Events]);
        {monitor, _, _, _} = Event -> collect([Event | Events]);
        {events, From} -> From ! {events, Events}, collect(Events)
    end.
