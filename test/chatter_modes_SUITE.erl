%% Every way to start a node: names, flags, several carriers, cookies, keys, start and stop of
%% the distribution at run time.
-module(chatter_modes_SUITE).
-behaviour(ct_suite).

-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_work, [on/2, start/1, start/2]).
-import(chatter_cluster, [wait_until/2]).

-define(TIMEOUT_MS, 10000).
-define(PROGRAM_MS, 30000).
-define(KEY, "5d1f0c6a97b3e84d2f60718293a4b5c6d7e8f9010a1b2c3d4e5f60718293a4bb").
-define(OTHER_KEY, "9e0b7c41d2f3a5968778695a4b3c2d1e0f1a2b3c4d5e6f708192a3b4c5d6e7f1").

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [long_names, ipv6, hidden, no_full_mesh, not_listening, dynamic_name, remote_shell,
     started_at_run_time, quiet_at_run_time, two_carriers, wrong_cookie, cookie_per_node, wrong_key,
     encryption_on_one_side, memory_of_the_key, ill_named].

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

end_per_testcase(_Case, _Config) -> chatter_cluster:stop_all().

%% Given -name with an address for a host, expect the nodes to meet.
long_names(_Config) ->
    Opts = #{longnames => true},
    [A, B] = [start(N, Opts) || N <- [a, b]],
    meet(A, B),
    ?assertMatch("127.0.0.1", lists:last(string:lexemes(atom_to_list(maps:get(node, B)), "@"))).

%% Given nodes that listen on ::1 only, expect them to link by address and to meet.
ipv6(_Config) ->
    Port = chatter_cluster:free_port(),
    B = start(b, #{chatter => [{my_addr, "::1"}, {my_port, Port}]}),
    A = start(a, #{links => static, neighbours => [{"::1", Port}], chatter => [{my_addr, "::1"}]}),
    ok = chatter_cluster:await_routes([A, B], ?TIMEOUT_MS),
    meet(A, B),
    [#{remote := Remote}] = on(A, fun() -> chatter:links() end),
    ?assertMatch(<<"[::1]:", _/binary>>, Remote).

%% Given -hidden, expect the node in nodes(hidden) only.
hidden(_Config) ->
    #{node := NodeA} = A = start(a, #{hidden => true}),
    #{node := NodeB} = B = start(b),
    chatter_work:connect(A, B),
    ?assertEqual({[], [NodeA]}, on(B, fun() -> {nodes(), nodes(hidden)} end)),
    ?assertEqual({[], [NodeB]}, on(A, fun() -> {nodes(), nodes(hidden)} end)).

%% Given -connect_all false, expect connections on demand only; without it, a full mesh.
no_full_mesh(_Config) ->
    Meshed = fun(Opts, Names) ->
                     [A, B, #{node := C}] = Nodes = [start(N, Opts) || N <- Names],
                     chatter_work:connect(A, B),
                     chatter_work:connect(B, lists:last(Nodes)),
                     {A, C}
             end,
    {A, C} = Meshed(#{args => ["-connect_all", "false"]}, [a, b, c]),
    {D, F} = Meshed(#{}, [d, e, f]),
    wait_until(fun() -> on(D, fun() -> lists:member(F, nodes()) end) end, ?TIMEOUT_MS),
    ?assertNot(on(A, fun() -> lists:member(C, nodes()) end)).

%% Given -dist_listen false, expect a hidden node that can connect and that nobody can dial.
not_listening(_Config) ->
    #{node := NodeA} = A = start(a, #{args => ["-dist_listen", "false"]}),
    #{node := NodeB} = B = start(b),
    ?assertEqual(pang, on(B, fun() -> net_adm:ping(NodeA) end)),
    ?assertMatch(#{port := none}, on(A, fun() -> chatter:info() end)),
    chatter_work:connect(A, B),
    ?assertEqual({[], [NodeA]}, on(B, fun() -> {nodes(), nodes(hidden)} end)),
    ?assertEqual(NodeA, on(B, fun() -> erpc:call(NodeA, erlang, node, []) end)),
    ?assertEqual(NodeB, on(A, fun() -> erpc:call(NodeB, erlang, node, []) end)).

%% Given -sname undefined, expect the first peer to give the node a name, and another
%% connection to work after the first was lost.
dynamic_name(_Config) ->
    #{node := NodeB} = B = start(b),
    #{node := NodeC} = start(c),
    Code = io_lib:format("chatter_modes_SUITE:dynamic('~s', '~s')", [NodeB, NodeC]),
    program(["-sname", "undefined"], Code, "named .*@.*\nnamed again .*@"),
    wait_until(fun() -> [] =:= on(B, fun() -> nodes(connected) end) end, ?TIMEOUT_MS).

dynamic(NodeB, NodeC) ->
    'nonode@nohost' = node(),
    true = net_kernel:connect_node(NodeB), % net_adm:ping/1 wants a name to begin with
    First = node(),
    io:format("named ~s~n", [First]),
    true = erpc:call(NodeB, fun() -> lists:member(First, nodes(hidden)) end),
    Id = maps:get(id, chatter:info()),
    NodeC = erpc:call(NodeC, erlang, node, []),
    %% By its name it is known everywhere, also where it has no link to.
    Knows = fun(N) -> lists:member(First, erpc:call(N, chatter, nodes, [])) end,
    wait_until(fun() -> lists:all(Knows, [NodeB, NodeC]) end, ?TIMEOUT_MS),
    %% The second connection has left the first one, and the native node, as they were.
    {NodeB, Id} = {erpc:call(NodeB, erlang, node, []), maps:get(id, chatter:info())},
    %% NodeB has given the name, so at its end net_kernel gives it back and ends the others.
    [true = erlang:disconnect_node(N) || N <- [NodeC, NodeB]],
    wait_until(fun() -> net_kernel:connect_node(NodeB) end, ?TIMEOUT_MS),
    io:format("named again ~s~n", [node()]),
    NodeB = erpc:call(NodeB, erlang, node, []).

%% Given `erl -remsh', which needs a terminal, expect a shell on the other node, and no
%% connection after its end.
remote_shell(_Config) ->
    case os:find_executable("script") of
        false -> {skip, "no script(1) to give the shell a terminal"};
        _ -> remote_shell_with_terminal()
    end.

remote_shell_with_terminal() ->
    #{node := NodeB} = B = start(b),
    Erl = lists:join($ , ["erl -sname undefined -remsh", atom_to_list(NodeB)
                          | ["'" ++ Arg ++ "'" || Arg <- chatter_work:flags(#{})]]),
    %% The group leader of the shell is on the node that has the terminal.
    %% Typed again and again: what is typed early goes to a shell of the node with the terminal.
    Line = io_lib:format("node() =:= nonode@nohost orelse begin "
                         "io:format([$s|\"hell at ~~s~~n\"], [node()]), "
                         "erpc:cast(node(group_leader()), init, stop, []) end.", []),
    Command = ["(while sleep 0.3; do echo '", Line, "' || exit; done) | script -qec \"", Erl,
               "\" /dev/null"],
    %% On a dumb terminal, as under make, there is only the old shell, which knows no -remsh.
    Env = [{"TERM", "vt100"} | chatter_cluster:node_env(#{})],
    Program = chatter_cluster:open("sh", ["-c", lists:flatten(Command)], #{env => Env}),
    _ = chatter_cluster:await_output(Program, "shell at " ++ atom_to_list(NodeB), ?PROGRAM_MS),
    wait_until(fun() -> [] =:= on(B, fun() -> nodes(connected) end) end, ?TIMEOUT_MS).

%% Given net_kernel:start/2 and stop/0 at run time, several times and with new names, expect
%% the node to meet others each time, and each name to be gone afterwards.
started_at_run_time(_Config) ->
    #{node := NodeB} = B = start(b),
    ok = chatter_work:watch(B),
    Names = [chatter_cluster:node_name(N) || N <- [r1, r2, r3, r1]],
    Code = io_lib:format("chatter_modes_SUITE:rounds(~0p, '~s')", [Names, NodeB]),
    program([], Code, "all rounds done"),
    wait_until(fun() -> [] =:= on(B, fun() -> nodes(connected) ++ chatter:nodes() end) end,
               ?TIMEOUT_MS),
    ?assertEqual(lists:append([[{nodeup, N}, {nodedown, N}] || N <- Names]),
                 [{Event, N} || {Event, N, _} <- chatter_work:events(B)]).

%% Given a node started at run time that does not listen, expect it to be gone when it is stopped.
quiet_at_run_time(_Config) ->
    #{node := NodeB} = B = start(b),
    ok = chatter_work:watch(B),
    Name = chatter_cluster:node_name(q1),
    Code = io_lib:format("chatter_modes_SUITE:quiet('~s', '~s')", [Name, NodeB]),
    program([], Code, "stopped quietly"),
    wait_until(fun() -> [] =:= on(B, fun() -> nodes(connected) ++ chatter:nodes() end) end,
               ?TIMEOUT_MS),
    ?assertMatch([{nodeup, Name}, {nodedown, Name}],
                 [{Event, N} || {Event, N, _} <- chatter_work:events(B)]).

quiet(Name, NodeB) ->
    {ok, _} = net_kernel:start(Name, #{name_domain => shortnames, dist_listen => false}),
    pong = net_adm:ping(NodeB),
    true = lists:member(Name, erpc:call(NodeB, chatter, nodes, [])),
    ok = net_kernel:stop(),
    {error, unreachable} = chatter:route(NodeB),
    io:format("stopped quietly~n").

rounds(Names, NodeB) ->
    lists:foreach(
      fun(Name) ->
              {ok, _} = net_kernel:start(Name, #{name_domain => shortnames}),
              Name = node(),
              pong = net_adm:ping(NodeB),
              NodeB = erpc:call(NodeB, erlang, node, []),
              Name = erpc:call(NodeB, erpc, call, [Name, erlang, node, []]),
              ok = net_kernel:stop(),
              'nonode@nohost' = node(),
              [] = nodes(),
              [] = chatter:nodes()
      end, Names),
    io:format("all rounds done~n").

%% Given -proto_dist inet_tcp chatter, expect the node to reach a stock node and a Chatter
%% node, and both to reach it.
two_carriers(_Config) ->
    #{node := NodeA} = A = start(a, #{carrier => both}),
    #{node := NodeS} = S = start(s, #{carrier => stock, args => ["-connect_all", "false"]}),
    #{node := NodeC} = C = start(c, #{args => ["-connect_all", "false"]}),
    meet(A, S),
    meet(A, C),
    Protocols = on(A, fun() ->
                              [{N, begin {ok, Address} = net_kernel:node_info(N, address),
                                         element(4, Address) end} || N <- [NodeS, NodeC]]
                      end),
    ?assertEqual([{NodeS, tcp}, {NodeC, chatter}], Protocols),
    [begin
         chatter_work:disconnect(A, N),
         ?assertEqual(pong, on(N, fun() -> net_adm:ping(NodeA) end))
     end || N <- [S, C]].

%% Given the same key and another cookie, expect a route but no connection.
wrong_cookie(_Config) ->
    A = start(a, #{chatter => [{key, ?KEY}]}),
    #{node := NodeB} = B = start(b, #{chatter => [{key, ?KEY}], cookie => "another"}),
    [?assertEqual(pang, on(A, fun() -> net_adm:ping(NodeB) end)) || _ <- [1, 2, 3]],
    ?assert(on(A, fun() -> lists:member(NodeB, chatter:nodes()) end)),
    [begin
         ?assertEqual([], on(N, fun() -> nodes(connected) end)),
         wait_until(fun() -> 0 =:= chatter_work:channels(N) end, ?TIMEOUT_MS)
     end || N <- [A, B]].

%% Given the other node's cookie set for it alone, expect a connection.
cookie_per_node(_Config) ->
    A = start(a, #{chatter => [{key, ?KEY}]}),
    #{node := NodeB} = B = start(b, #{chatter => [{key, ?KEY}], cookie => "another"}),
    on(A, fun() -> erlang:set_cookie(NodeB, another) end),
    meet(A, B).

%% Given another key and the same cookie, expect no link, and an attempt to fail in time.
wrong_key(_Config) ->
    A = start(a, #{chatter => [{key, ?KEY}]}),
    #{node := NodeB} = B = start(b, #{chatter => [{key, ?OTHER_KEY}]}),
    apart(A, B, NodeB).

%% Given encryption at one end only, expect the same.
encryption_on_one_side(_Config) ->
    A = start(a),
    #{node := NodeB} = B = start(b, #{chatter => [{encryption, false}]}),
    apart(A, B, NodeB).

%% Given a key that is derived from the cookie, expect the memory that this takes to be given back:
%% such a node holds little more than one with a key.
memory_of_the_key(_Config) ->
    Derived = resident_kib(start(a)),
    Given = resident_kib(start(b, #{chatter => [{key, ?KEY}]})),
    ?assertMatch({D, G} when D < G + 12 * 1024, {Derived, Given}).

resident_kib(Node) ->
    {ok, Status} = file:read_file("/proc/" ++ chatter_cluster:os_pid(Node) ++ "/status"),
    {match, [KiB]} = re:run(Status, "RssAnon:\\s*(\\d+)", [{capture, all_but_first, list}]),
    list_to_integer(KiB).

%% Given names of the wrong kind, expect pang without any delay, as from stock.
ill_named(_Config) ->
    A = start(a),
    Before = chatter_work:now_ms(),
    [?assertEqual(pang, on(A, fun() -> net_adm:ping(N) end))
     || N <- ['nowhere', 'x@long.host.name', '@', 'x@']],
    ?assert(chatter_work:now_ms() - Before < 5000).

%%% Helpers

meet(#{node := NodeA} = A, #{node := NodeB} = B) ->
    ?assertEqual(pong, on(A, fun() -> net_adm:ping(NodeB) end)),
    ?assertEqual(NodeB, on(A, fun() -> erpc:call(NodeB, erlang, node, []) end)),
    ?assertEqual(NodeA, on(B, fun() -> erpc:call(NodeA, erlang, node, []) end)).

apart(A, B, NodeB) ->
    Before = chatter_work:now_ms(),
    ?assertEqual(pang, on(A, fun() -> net_adm:ping(NodeB) end)),
    ?assert(chatter_work:now_ms() - Before < 8000),
    [?assertEqual([], on(N, fun() -> nodes(connected) ++ chatter:nodes() ++ chatter:neighbours()
                            end)) || N <- [A, B]].

%% A node that runs Code and halts; what it says has to match.
program(Args, Code, Pattern) ->
    Eval = lists:flatten(["try ", Code, ", halt(0) catch C:R:S -> "
                          "io:format(\"~p~n\", [{C, R, S}]), halt(1) end."]),
    {Exit, Output} = chatter_cluster:run_node(Args ++ chatter_work:flags(#{}) ++ ["-eval", Eval],
                                              ?PROGRAM_MS),
    ct:log("~ts", [Output]),
    ?assertEqual({0, Output}, {Exit, Output}),
    ?assertMatch({match, _}, re:run(Output, Pattern)).
