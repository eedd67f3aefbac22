%% How connections end: disconnected, halted, stopped, killed, frozen, or by the death of any
%% process of Chatter. Each time: nodedown as stock would report it and once, nothing left
%% behind, and the nodes can meet again.
-module(chatter_ends_SUITE).
-behaviour(ct_suite).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_work, [on/2, start/1, start/2]).
-import(chatter_cluster, [wait_until/2]).

-define(TIMEOUT_MS, 10000).

suite() -> [{timetrap, {seconds, 60}}].

all() -> [{group, pair}, halted, stopped, stopped_at_once, killed, frozen, vm_hangs,
          linked_processes_hear_of_it, node_process_killed_while_dialling, supervisors_killed,
          killed_in_the_handshake, many_rounds_leave_nothing].

groups() ->
    [{pair, [], [disconnected, controller_killed, input_killed, connection_supervisor_killed,
                 acceptor_killed, node_process_killed, epmd_processes_killed]}].

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

init_per_group(pair, Config) ->
    Nodes = chatter_work:shared(fun chatter_work:pair/0),
    lists:foreach(fun chatter_work:watch/1, Nodes),
    [{pair, Nodes} | Config].

end_per_group(pair, _Config) -> chatter_cluster:stop_all().

end_per_testcase(Case, _Config) ->
    case lists:member(Case, all()) of
        true -> chatter_cluster:stop_all();
        false -> ok
    end.

%%% One connection ends, both nodes live on

%% Given disconnect_node/1, expect one nodedown at each end and a new connection on demand.
disconnected(Config) ->
    down_once(Config, fun(A, #{node := NodeB}) ->
                              true = on(A, fun() -> erlang:disconnect_node(NodeB) end)
                      end).

%% Given the death of the controller, at either end, expect the same.
controller_killed(Config) -> process_killed(Config, controller).

%% Given the death of the input process, at either end, expect the same.
input_killed(Config) -> process_killed(Config, input).

%% Given the death of the supervisor of the connection, at either end, expect the same.
connection_supervisor_killed(Config) -> process_killed(Config, supervisor).

process_killed(Config, Which) ->
    Kill = fun(Victim, #{node := Other}) ->
                   on(Victim, fun() -> exit(chatter_work:connection(Other, Which), kill) end)
           end,
    down_once(Config, Kill),
    down_once(Config, fun(A, B) -> Kill(B, A) end).

%% Given the death of the acceptor, expect the connection to live, and new ones to be taken.
acceptor_killed(Config) ->
    [A, B] = ?config(pair, Config),
    Before = counts(A, B),
    Acceptor = fun() ->
                       [Pid] = [P || P <- processes(), process_info(P, initial_call) =:=
                                         {initial_call, {chatter_dist, accept_loop, 1}}],
                       Pid
               end,
    Old = on(B, Acceptor),
    on(B, fun() -> exit(Old, kill) end),
    wait_until(fun() -> Old =/= on(B, Acceptor) end, ?TIMEOUT_MS),
    still_up(A, B, Before),
    chatter_work:disconnect(A, B),
    usable(A, B).

%% Given the death of chatter_node, expect the connection to live, and its successor to dial,
%% to log and to answer.
node_process_killed(Config) ->
    [A, #{node := NodeB} = B] = ?config(pair, Config),
    Before = counts(A, B),
    replaced(A, chatter_node),
    replaced(B, chatter_node),
    still_up(A, B, Before),
    chatter_work:disconnect(A, B),
    none_left(A), none_left(B), % or `auto' would bring the link back for them
    ok = on(A, fun() -> chatter:disconnect(NodeB) end),
    wait_until(fun() -> [] =:= on(A, fun() -> chatter:nodes() end) end, ?TIMEOUT_MS),
    usable(A, B).

%% Given the death of each worker of the registry in turn, expect the connection to live, and
%% the names to be known. (Supervisors: see supervisors_killed.)
epmd_processes_killed(Config) ->
    [A, #{node := NodeB} = B] = ?config(pair, Config),
    Before = counts(A, B),
    Names = on(B, fun() -> [N || N <- registered(), N =/= chatter_epmd_sup,
                                 lists:prefix("chatter_epmd", atom_to_list(N))] end),
    ct:log("processes of the registry: ~p", [Names]),
    ?assertNotEqual([], Names),
    [begin replaced(N, Name), still_up(A, B, Before) end
     || Name <- Names, N <- [A, B], on(N, fun() -> is_pid(whereis(Name)) end)],
    Short = hd(string:lexemes(atom_to_list(NodeB), "@")),
    wait_until(fun() ->
                       {ok, Known} = on(A, fun() -> net_adm:names() end),
                       lists:keymember(Short, 1, Known) orelse Known
               end, ?TIMEOUT_MS),
    chatter_work:disconnect(A, B),
    usable(A, B).

%%% One node ends

%% Given halt/0 of the other node, expect nodedown, once, within a second.
halted(_Config) ->
    down_within(1000, fun(#{node := NodeB} = B, A) ->
                              on(A, fun() -> spawn(NodeB, erlang, halt, []) end),
                              chatter_work:await_gone(B)
                      end).

%% Given kill -9 of the other node, expect the same.
killed(_Config) ->
    down_within(1000, fun(B, _) ->
                              _ = os:cmd("kill -KILL " ++ chatter_cluster:os_pid(B)),
                              chatter_work:await_gone(B)
                      end).

%% Given init:stop/0 by a process that has sent, and had a reply from elsewhere, expect all
%% that it sent.
stopped(_Config) ->
    [A, #{node := NodeB} = B] = chatter_work:pair(),
    ok = chatter_work:watch(A),
    ok = chatter_work:sink(A, farewell),
    #{node := NodeA} = A,
    on(B, fun() ->
                  send_farewell(NodeA),
                  NodeA = erpc:call(NodeA, erlang, node, []),
                  init:stop()
          end),
    chatter_work:await_seen({A, farewell}, 5000, 20000),
    _ = chatter_work:await_down(A, NodeB, 20000).

%% Given init:stop/0 right after sending, with nothing waited for, expect all that was sent.
stopped_at_once(_Config) ->
    [#{node := NodeA} = A, B] = chatter_work:pair(),
    ok = chatter_work:sink(A, farewell),
    on(B, fun() -> send_farewell(NodeA), init:stop() end),
    chatter_work:await_seen({A, farewell}, 5000, 20000).

%% Given a node that is stopped with its sockets open (SIGSTOP), expect nodedown within
%% hold_ms + unreachable_ms + 500 ms, and a new connection when it goes on.
frozen(_Config) ->
    [A, #{node := NodeB} = B] = chatter_work:pair(),
    ok = chatter_work:watch(A),
    Before = chatter_work:now_ms(),
    ok = chatter_cluster:freeze(B),
    Down = chatter_work:await_down(A, NodeB, ?TIMEOUT_MS),
    ct:pal("nodedown ~b ms after SIGSTOP", [Down - Before]),
    ?assert(Down - Before =< 1000 + 500 + 500),
    ?assertEqual(pang, on(A, fun() -> net_adm:ping(NodeB) end)),
    ok = chatter_cluster:thaw(B),
    chatter_work:connect(A, B),
    ?assertMatch([{nodedown, NodeB, _}, {nodeup, NodeB, _}], chatter_work:events(A)),
    usable(A, B).

%% Given a node whose VM runs nothing any more while its links do (all schedulers blocked), expect
%% nodedown as when ticks stop over stock: 5 s until that is known, then up to 1.25 net_ticktime.
vm_hangs(_Config) ->
    [A, #{node := NodeB} = B] = chatter_work:pair(#{args => ["-kernel", "net_ticktime", "4"]}),
    on(A, fun() ->
                  Self = self(),
                  spawn(fun() ->
                                ok = net_kernel:monitor_nodes(true, [nodedown_reason]),
                                Self ! watching,
                                receive
                                    {nodedown, NodeB, [{nodedown_reason, Reason}]} ->
                                        persistent_term:put(down_reason, Reason)
                                end
                        end),
                  receive watching -> ok end
          end),
    on(B, fun() ->
                  true = is_boolean(erts_debug:set_internal_state(available_internal_state, true)),
                  spawn(fun() ->
                                receive after 100 -> ok end, % the answer to us has to get out
                                erts_debug:set_internal_state(block, 60000)
                        end),
                  ok
          end),
    Reason = fun() -> on(A, fun() -> persistent_term:get(down_reason, none) end) end,
    wait_until(fun() -> none =/= Reason() end, 15000),
    ?assertEqual(net_tick_timeout, Reason()),
    ok = chatter_cluster:kill9(B).

%% Given links and monitors to a node that is killed, expect `noconnection' for each.
linked_processes_hear_of_it(_Config) ->
    [A, #{node := NodeB} = B] = chatter_work:pair(),
    on(A, fun() ->
                  Self = self(),
                  spawn(fun() ->
                                process_flag(trap_exit, true),
                                Pids = [spawn_link(NodeB, timer, sleep, [infinity])
                                        || _ <- lists:seq(1, 100)],
                                Ref = monitor_node(NodeB, true),
                                Self ! {linked, Ref},
                                Reasons = [receive {'EXIT', P, R} -> R end || P <- Pids],
                                receive {nodedown, NodeB} -> ok end,
                                register(heard, self()),
                                receive {tell, From} -> From ! lists:usort(Reasons) end
                        end),
                  receive {linked, true} -> ok end
          end),
    ok = chatter_cluster:kill9(B),
    wait_until(fun() -> on(A, fun() -> is_pid(whereis(heard)) end) end, ?TIMEOUT_MS),
    ?assertEqual([noconnection],
                 on(A, fun() -> heard ! {tell, self()}, receive R -> R end end)).

%% Given the death of chatter_node while a connection attempt waits for a link to a node that
%% is frozen, expect the attempt to fail and net_kernel to go on; the next attempt succeeds.
node_process_killed_while_dialling(_Config) ->
    A = start(a),
    #{node := NodeB} = B = start(b),
    ok = chatter_cluster:freeze(B),
    on(A, fun() -> spawn(fun() -> net_kernel:connect_node(NodeB) end), ok end),
    Setups = fun() -> [P || P <- processes(), process_info(P, initial_call) =:=
                                {initial_call, {chatter_dist, do_setup, 5}}] end,
    wait_until(fun() -> on(A, fun() -> [] =/= Setups() end) end, ?TIMEOUT_MS),
    replaced(A, chatter_node),
    wait_until(fun() -> on(A, fun() -> [] =:= Setups() end) end, ?TIMEOUT_MS),
    ok = chatter_cluster:thaw(B),
    usable(A, B).

%% Given the death of one of Chatter's supervisors, which are children of net_sup as stock's
%% erl_epmd is, expect the node to stop as stock does, and nodedown at the other.
supervisors_killed(_Config) ->
    Opts = #{env => [{"ERL_CRASH_DUMP_SECONDS", "0"}]},
    A = start(a),
    ok = chatter_work:watch(A),
    [begin
         #{node := NodeB} = B = start(Name, Opts),
         chatter_work:connect(A, B),
         on(B, fun() -> exit(whereis(Supervisor), kill), ok end),
         _ = chatter_work:await_gone(B),
         _ = chatter_work:await_down(A, NodeB, ?TIMEOUT_MS),
         none_left(A)
     end || {Name, Supervisor} <- [{b, chatter_dist_sup}, {c, chatter_epmd_sup}]].

%% Given a node that is frozen while it should answer the handshake, and the attempt given up
%% by disconnect_node/1, expect net_kernel to answer at once, and the channel to be gone.
killed_in_the_handshake(_Config) ->
    [A, #{node := NodeB} = B] = [start(N, #{chatter => [{hold_ms, 60000}]}) || N <- [a, b]],
    chatter_work:connect(A, B),
    chatter_work:disconnect(A, B),
    ok = chatter_cluster:freeze(B),
    on(A, fun() -> spawn(fun() -> net_kernel:connect_node(NodeB) end), ok end),
    wait_until(fun() -> 0 < chatter_work:channels(A) end, ?TIMEOUT_MS),
    Before = chatter_work:now_ms(),
    on(A, fun() -> erlang:disconnect_node(NodeB), net_kernel:nodes_info() end),
    ?assert(chatter_work:now_ms() - Before < 2000),
    on(A, fun() -> [exit(P, kill) || P <- processes(), process_info(P, initial_call) =:=
                        {initial_call, {chatter_dist, do_setup, 5}}] end),
    ok = chatter_cluster:thaw(B),
    usable(A, B).

%% Given many connections made and ended in every way in turn, expect as many processes, ports
%% and channels as before.
many_rounds_leave_nothing(_Config) ->
    [A, #{node := NodeB} = B] = chatter_work:pair(),
    Count = fun(N) -> on(N, fun() -> {length(processes()), erlang:system_info(port_count)} end) end,
    chatter_work:disconnect(A, B),
    none_left(A), none_left(B),
    Before = [wait_until(fun() -> {ok, Count(N)} end, 100) || N <- [A, B]],
    [begin
         chatter_work:connect(A, B),
         on(A, fun() ->
                       case Round rem 4 of
                           0 -> erlang:disconnect_node(NodeB);
                           1 -> exit(chatter_work:connection(NodeB, input), kill);
                           2 -> exit(chatter_work:connection(NodeB, controller), kill);
                           3 -> exit(chatter_work:connection(NodeB, supervisor), kill)
                       end
               end),
         wait_until(fun() -> [] =:= on(A, fun() -> nodes() end)
                                 andalso [] =:= on(B, fun() -> nodes() end) end, ?TIMEOUT_MS)
     end || Round <- lists:seq(1, 40)],
    none_left(A), none_left(B),
    wait_until(fun() -> case [Count(N) || N <- [A, B]] of Before -> true; Now -> {Before, Now} end
               end, ?TIMEOUT_MS).

%%% Helpers

%% Nodes of the shared pair: whatever End does, one more nodedown and nodeup at each end.
down_once(Config, End) ->
    [#{node := NodeA} = A, #{node := NodeB} = B] = ?config(pair, Config),
    usable(A, B),
    Before = counts(A, B),
    End(A, B),
    [wait_until(fun() -> case downs(N) of D when D > Was -> true; D -> {D, Was} end end,
                ?TIMEOUT_MS) || {N, Was} <- lists:zip([A, B], Before)],
    usable(A, B),
    %% Both have heard of all there was: a second nodedown would come before the nodeup.
    ?assertEqual([D + 1 || D <- Before], counts(A, B)),
    [?assertMatch([{nodeup, _, _}, {nodedown, _, _} | _], lists:reverse(chatter_work:events(N)))
     || N <- [A, B]],
    ?assertEqual([[NodeB], [NodeA]], [on(N, fun() -> nodes() end) || N <- [A, B]]).

counts(A, B) -> [downs(A), downs(B)].

downs(Peer) -> length([1 || {nodedown, _, _} <- chatter_work:events(Peer)]).

still_up(A, #{node := NodeB} = B, Before) ->
    ?assertEqual([NodeB], on(A, fun() -> nodes() end)),
    ?assertEqual(NodeB, on(A, fun() -> erpc:call(NodeB, erlang, node, [], 5000) end)),
    ?assertEqual(Before, counts(A, B)).

%% A fresh or present connection carries data both ways, and is the only one.
usable(A, #{node := NodeB} = B) ->
    #{node := NodeA} = A,
    chatter_work:connect(A, B),
    ?assertEqual(NodeB, on(A, fun() -> erpc:call(NodeB, erlang, node, [], 5000) end)),
    ?assertEqual(NodeA, on(B, fun() -> erpc:call(NodeA, erlang, node, [], 5000) end)),
    [wait_until(fun() -> case chatter_work:channels(N) of 1 -> true; C -> {channels, C} end end,
                ?TIMEOUT_MS) || N <- [A, B]].

none_left(Peer) ->
    wait_until(fun() -> case chatter_work:channels(Peer) of 0 -> true; C -> {channels, C} end end,
               ?TIMEOUT_MS).

replaced(Peer, Name) ->
    Old = on(Peer, fun() -> Pid = whereis(Name), exit(Pid, kill), Pid end),
    wait_until(fun() -> case on(Peer, fun() -> whereis(Name) end) of
                            Old -> old;
                            New -> is_pid(New)
                        end end, ?TIMEOUT_MS).

%% End ends B and returns when it was gone.
down_within(Ms, End) ->
    [A, #{node := NodeB} = B] = chatter_work:pair(),
    ok = chatter_work:watch(A),
    Gone = End(B, A),
    Down = chatter_work:await_down(A, NodeB, ?TIMEOUT_MS),
    ct:pal("nodedown ~b ms after the process was gone", [Down - Gone]),
    ?assert(Down - Gone =< Ms),
    none_left(A),
    %% What `global' was sending when it ended makes the VM try to connect once more, in vain.
    wait_until(fun() -> case on(A, fun() -> net_kernel:nodes_info() end) of
                            {ok, []} -> true;
                            Left -> Left
                        end end, ?TIMEOUT_MS),
    ?assertMatch([{nodedown, NodeB, _}], chatter_work:events(A)).

send_farewell(Node) ->
    Small = chatter_work:pattern(1000),
    Large = chatter_work:pattern(100000),
    [{farewell, Node} ! {me, N, case N rem 50 of 0 -> Large; _ -> Small end}
     || N <- lists:seq(1, 5000)].
