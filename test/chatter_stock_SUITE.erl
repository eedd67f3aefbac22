%% What stock does in the corners and OTP's own suites ask for; found by `make conformance`, which
%% takes long. Each case here is the short form of one there.
-module(chatter_stock_SUITE).
-behaviour(ct_suite).

-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_work, [on/2, start/1, start/2]).
-import(chatter_cluster, [wait_until/2]).

-define(TIMEOUT_MS, 10000).
-define(KEY, "5d1f0c6a97b3e84d2f60718293a4b5c6d7e8f9010a1b2c3d4e5f60718293a4bb").

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [down_reasons, raw_frames_wait, first_ping_after_restarts, refused_dials_are_told,
     epmd_module_knows_the_address, named_without_listening].

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

end_per_testcase(_Case, _Config) -> chatter_cluster:stop_all().

%% Given connections that end in each way, expect the reason of nodedown that stock gives
%% (erl_distribution: monitor_nodes_nodedown_reason).
down_reasons(_Config) ->
    #{node := NodeA} = A = start(a),
    [begin
         #{node := NodeB} = B = start(b),
         chatter_work:connect(A, B),
         Got = on(A, fun() ->
                             ok = net_kernel:monitor_nodes(true, [nodedown_reason]),
                             End(NodeA, B),
                             receive {nodedown, NodeB, [{nodedown_reason, R}]} -> R
                             after ?TIMEOUT_MS -> none
                             end
                     end),
         ?assertEqual({How, Reason}, {How, Got}),
         ok = chatter_cluster:kill9(B)
     end || _Round <- [1, 2, 3],
            {How, Reason, End} <-
                [{halt, connection_closed,
                  fun(_, #{node := N}) -> spawn(N, erlang, halt, []) end},
                 {killed, connection_closed,
                  fun(_, #{os_pid := P}) -> os:cmd("kill -KILL " ++ P) end},
                 {disconnected, disconnect,
                  fun(_, #{node := N}) -> erlang:disconnect_node(N) end},
                 {disconnected_there, connection_closed,
                  fun(Us, #{node := N}) -> spawn(N, erlang, disconnect_node, [Us]) end}]].

%% Given a receiver that takes nothing, expect raw frames to be left unanswered once the
%% channel is full (erl_link: busy_dist_port_monitor, distribution: bad_dist_*).
raw_frames_wait(_Config) ->
    [#{node := NodeA} = A, #{node := NodeB} = B] = chatter_work:pair(),
    on(B, fun() ->
                  Self = self(),
                  spawn(fun() -> % a process is suspended for as long as who did it lives
                                true = erlang:suspend_process(
                                         chatter_work:connection(NodeA, input)),
                                Self ! suspended,
                                receive stay -> ok end
                        end),
                  receive suspended -> ok end
          end),
    Sent = on(A, fun() -> send_raw(chatter_work:connection(NodeB, controller), 0) end),
    ct:pal("~b raw frames of 1 MiB were taken", [Sent]),
    ?assert(Sent > 0 andalso Sent < 64),
    ok = chatter_cluster:kill9(B).

send_raw(_Ctrl, 64) -> 64;
send_raw(Ctrl, Sent) ->
    Ref = make_ref(),
    Ctrl ! {send, self(), Ref, <<0:(8 * 1024 * 1024)>>},
    receive {Ref, ok} -> send_raw(Ctrl, Sent + 1)
    after 1000 -> Sent
    end.

%% Given nodes that are started again under their old names, expect the first ping to be answered,
%% whoever is the new one (erl_distribution: hidden_node).
first_ping_after_restarts(_Config) ->
    [_Third, A0, B0] = [start(N) || N <- [c, a, b]],
    Ping = fun(X, #{node := Node}) -> on(X, fun() -> net_adm:ping(Node) end) end,
    pong = Ping(A0, B0),
    lists:foldl(fun(Round, {A, B}) ->
                        ok = chatter_cluster:stop(A),
                        ok = chatter_cluster:stop(B),
                        [A1, B1] = [start(N) || N <- case Round rem 2 of 0 -> [a, b];
                                                                         1 -> [b, a] end],
                        ?assertEqual({Round, pong}, {Round, Ping(A1, B1)}),
                        {A1, B1}
                end, {A0, B0}, lists:seq(1, 4)).

%% Given a node of another cookie, which takes no link, expect to be told without a wait
%% (distribution: group_leader).
refused_dials_are_told(_Config) ->
    [A, #{node := NodeB}] = [start(a), start(b, #{cookie => "another"})],
    Before = chatter_work:now_ms(),
    ?assertEqual(pang, on(A, fun() -> net_adm:ping(NodeB) end)),
    ?assert(chatter_work:now_ms() - Before < 1500).

%% Given an epmd module that knows nodes of hosts that cannot be resolved, expect them to be reached
%% (distribution: epmd_module).
epmd_module_knows_the_address(_Config) ->
    Port = chatter_cluster:free_port(),
    Opts = #{carrier => release, longnames => true,
             env => [{"ELSEWHERE_PORT", integer_to_list(Port)}],
             args => ["-pa", chatter_cluster:ebin(), "-proto_dist", "chatter",
                      "-epmd_module", "chatter_epmd_elsewhere", "-start_epmd", "false"]},
    B = start('b@elsewhere.invalid', Opts#{chatter => [{my_port, Port}]}),
    A = start('a@elsewhere.invalid', Opts),
    chatter_work:connect(A, B).

%% Given net_kernel:start/2 with a name and without listening, expect a hidden node that can connect
%% (erl_distribution: net_kernel_start).
named_without_listening(_Config) ->
    #{node := NodeB} = B = start(b),
    Name = chatter_cluster:node_name(r),
    Code = io_lib:format("chatter_stock_SUITE:quiet('~s', '~s')", [Name, NodeB]),
    chatter_modes_SUITE:program([], Code, "has worked"),
    wait_until(fun() -> [] =:= on(B, fun() -> nodes(connected) ++ chatter:nodes() end) end,
               ?TIMEOUT_MS).

quiet(Name, NodeB) ->
    {ok, _} = net_kernel:start(Name, #{name_domain => shortnames, dist_listen => false}),
    pong = net_adm:ping(NodeB),
    Name = node(),
    [Name] = erpc:call(NodeB, erlang, nodes, [hidden]),
    ok = net_kernel:stop(),
    io:format("has worked~n").
