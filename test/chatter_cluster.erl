%% Starts and stops the nodes that the suites, the demo and nothing else work with.
%%
%% A *cluster* is what one test case uses: a cookie that nobody else has, an epmd port that
%% nobody else uses, and the nodes started since. There is one current cluster; `start/2`
%% makes it when there is none and `stop_all/0` ends it:
%%
%%     relayed_ping(_Config) ->
%%         [A, _R, B] = chatter_cluster:line(3),
%%         pong = chatter_cluster:call(A, net_adm, ping, [maps:get(node, B)]).
%%
%%     end_per_testcase(_Case, _Config) -> chatter_cluster:stop_all().
%%
%% The nodes are `peer` nodes on standard_io. Control therefore never rides on the carrier
%% under test, the runner needs no distribution of its own, and when the runner goes, in
%% whatever way, its nodes see the end of their input and halt.
%%
%% Processes: one server, registered under the name of this module. It owns the table of
%% nodes and the pipe to a stock epmd, and is linked to nobody, so that what a failed case
%% left behind is still known when the case is cleaned up.
-module(chatter_cluster).

-export([new/0, new/1, stop_all/0]).
-export([start/1, start/2, line/1, line/2, star/1, star/2, mesh/1, mesh/2, stop/1]).
-export([call/4, call/5, node_name/1, os_pid/1, kill9/1, freeze/1, thaw/1]).
-export([await_routes/2, wait_until/2]).
-export([node_args/2, node_env/1, run_node/2, run_node/3, run/4]).
-export([open/3, close/1, await_output/3, await_exit/2]).
-export([root/0, ebin/0, native_lib/0, epmd_port/0, cookie/0, free_port/0]).

-export_type([peer/0, opts/0, run_opts/0, program/0]).

-type peer() :: #{control := pid(), node := node(), os_pid := string()}.

-type neighbour() :: atom() | peer() | {atom() | inet:hostname(), pos_integer()}.

%% carrier     chatter (the default); stock: inet_tcp with a stock epmd;
%%             both: `-proto_dist inet_tcp chatter` in one node;
%%             release: Chatter, by flags that the release brings along in its vm.args
%% neighbours  peers, short names given to start/2, full names, or tuples as in the
%%             configuration; no key is set when absent
%% links       static | auto; not set when absent
%% chatter     further keys of the configuration
%% args, env   further arguments and environment variables, after all others
%% hidden      true adds -hidden
%% longnames   true: -name with the host part 127.0.0.1
%% await       line, star and mesh only: false returns before the routes are there
%% exec        the program and its first arguments, in place of erl
%% cookie      in place of that of the cluster
%% ebin        a directory of Chatter's modules in place of ebin/0
-type opts() :: #{carrier => chatter | stock | both | release, neighbours => [neighbour()],
                  links => static | auto, chatter => [{atom(), term()}], args => [string()],
                  env => [{string(), string() | false}], hidden => boolean(),
                  longnames => boolean(), await => boolean(), cookie => string(),
                  exec => file:name() | {file:name(), [string()]}, ebin => file:name()}.

-type run_opts() :: #{cd => file:name(), env => [{string(), string() | false}]}.

-type program() :: #{server := pid(), reader := pid()}.

-define(BOOT_TIMEOUT_MS, 15000).
-define(CALL_TIMEOUT_MS, 60000).
-define(ROUTES_TIMEOUT_MS, 15000).
-define(STOP_TIMEOUT_MS, 5000).
-define(POLL_MS, 10).

%%% ------------------------------------------------------------------------------------
%%% Clusters

%% Ends the current cluster and begins a new one.
-spec new() -> ok.
new() -> new(#{}).

%% The same; `suffix` is what the names of nodes get appended (default: something unique).
-spec new(#{suffix => string()}) -> ok.
new(Opts) ->
    ok = stop_all(),
    Unique = binary:encode_hex(random_bytes(3)),
    Suffix = maps:get(suffix, Opts, "_" ++ string:lowercase(binary_to_list(Unique))),
    true = ets:insert(table(), {cluster, #{cookie => new_cookie(), suffix => Suffix,
                                           epmd_port => free_port()}}),
    ok.

%% Ends all nodes and programs of the current cluster and returns when they are gone. A node
%% that does not go by itself is killed. Safe to call at any time, any number of times.
-spec stop_all() -> ok.
stop_all() ->
    case whereis(?MODULE) of
        undefined ->
            ok;
        _ ->
            Table = table(),
            Peers = [P || {{peer, _}, P} <- ets:tab2list(Table)],
            %% All at once, so that none has the time to report that the others are gone.
            lists:foreach(fun hang_up/1, Peers),
            lists:foreach(fun stop/1, Peers),
            lists:foreach(fun close/1, [P || {{program, _}, P} <- ets:tab2list(Table)]),
            true = ets:delete_all_objects(Table),
            ok
    end.

%% The epmd port of the current cluster.
-spec epmd_port() -> inet:port_number().
epmd_port() -> maps:get(epmd_port, cluster()).

%% The cookie of the current cluster.
-spec cookie() -> string().
cookie() -> maps:get(cookie, cluster()).

%%% ------------------------------------------------------------------------------------
%%% Nodes

%% start(Name, #{}).
-spec start(atom()) -> peer().
start(Name) -> start(Name, #{}).

%% Starts a node and returns when it has booted. Fails with what the node said when it
%% does not. Name is a short name; the node's own name is made unique, see node_name/1.
-spec start(atom(), opts()) -> peer().
start(Name, Opts) ->
    Node = node_name(Name, Opts),
    maps:get(carrier, Opts, chatter) =:= stock andalso ensure_stock_epmd(),
    PeerOpts = #{name => hd(string:lexemes(atom_to_list(Node), "@")),
                 host => lists:last(string:lexemes(atom_to_list(Node), "@")),
                 longnames => maps:get(longnames, Opts, false),
                 connection => standard_io, shutdown => close, wait_boot => ?BOOT_TIMEOUT_MS,
                 exec => maps:get(exec, Opts, erl()),
                 args => flags(Opts) ++ ["+Bd"],
                 env => node_env(Opts)},
    {ok, Control, Node} = peer:start(PeerOpts),
    Peer = #{control => Control, node => Node,
             os_pid => peer:call(Control, os, getpid, [], ?CALL_TIMEOUT_MS)},
    true = ets:insert(table(), {{peer, Node}, Peer}),
    Peer.

%% N nodes n1 .. nN, each with static links to the next and the one before it, in order.
-spec line(pos_integer()) -> [peer()].
line(N) -> line(N, #{}).

-spec line(pos_integer(), opts()) -> [peer()].
line(N, Opts) ->
    shape([{I, [J || J <- [I - 1, I + 1], J >= 1, J =< N]} || I <- lists:seq(1, N)], Opts).

%% N nodes; the first is the centre, all others have a static link to it and nobody else.
-spec star(pos_integer()) -> [peer()].
star(N) -> star(N, #{}).

-spec star(pos_integer(), opts()) -> [peer()].
star(N, Opts) ->
    shape([{1, []} | [{I, [1]} || I <- lists:seq(2, N)]], Opts).

%% N nodes, each with a static link to every other.
-spec mesh(pos_integer()) -> [peer()].
mesh(N) -> mesh(N, #{}).

-spec mesh(pos_integer(), opts()) -> [peer()].
mesh(N, Opts) ->
    Peers = shape([{I, lists:seq(1, I - 1)} || I <- lists:seq(1, N)], Opts),
    Chatter = maps:get(carrier, Opts, chatter) =/= stock andalso maps:get(await, Opts, true),
    _ = [await_mesh(Peer, N) || Chatter, Peer <- Peers],
    Peers.

%% Routes are there before all links are. Not before the node knows each of them from both ends, at
%% the same metric, is it a mesh to it.
await_mesh(Peer, N) ->
    wait_until(fun() ->
                       #{edges := Edges} = call(Peer, chatter, topology, []),
                       Metrics = [Metric || {_, _, Metric} <- Edges],
                       length(Edges) =:= N * (N - 1) andalso length(lists:usort(Metrics)) =:= 1
                           orelse {no_mesh, Edges}
               end, ?ROUTES_TIMEOUT_MS).

%% Ends one node and returns when its process is gone.
-spec stop(peer()) -> ok.
stop(#{node := Node, os_pid := OsPid} = Peer) ->
    hang_up(Peer),
    Gone = fun() -> not alive(OsPid) end,
    try wait_until(Gone, ?STOP_TIMEOUT_MS)
    catch error:{timeout, _} -> signal("KILL", OsPid), wait_until(Gone, ?STOP_TIMEOUT_MS)
    end,
    true = ets:delete(table(), {peer, Node}),
    ok.

%% M:F(A) on the node, over its standard_io. Exceptions are raised here as they were there.
-spec call(peer(), module(), atom(), [term()]) -> term().
call(Peer, M, F, A) -> call(Peer, M, F, A, ?CALL_TIMEOUT_MS).

-spec call(peer(), module(), atom(), [term()], timeout()) -> term().
call(#{control := Control}, M, F, A, Timeout) -> peer:call(Control, M, F, A, Timeout).

%% The full name that start(Name, _) gives to a node of the current cluster.
-spec node_name(atom()) -> node().
node_name(Name) -> node_name(Name, #{}).

%% The process ID of the node, as the operating system has it.
-spec os_pid(peer()) -> string().
os_pid(#{os_pid := OsPid}) -> OsPid.

%% SIGKILL: the node has no chance to say good-bye. Returns when the process is gone.
-spec kill9(peer()) -> ok.
kill9(#{os_pid := OsPid} = Peer) ->
    signal("KILL", OsPid),
    stop(Peer).

%% SIGSTOP: the node keeps its sockets and answers nothing, as after a silent cut.
-spec freeze(peer()) -> ok.
freeze(#{os_pid := OsPid}) -> signal("STOP", OsPid).

%% SIGCONT: the end of freeze/1.
-spec thaw(peer()) -> ok.
thaw(#{os_pid := OsPid}) -> signal("CONT", OsPid).

%% Returns when every one of these nodes has a route to every other.
-spec await_routes([peer()], pos_integer()) -> ok.
await_routes(Peers, TimeoutMs) ->
    All = lists:sort([Node || #{node := Node} <- Peers]),
    wait_until(
      fun() ->
              case [{Node, All -- [Node | call(P, chatter, nodes, [])]}
                    || #{node := Node} = P <- Peers] of
                  [] -> true;
                  Missing -> [] =:= lists:append([M || {_, M} <- Missing]) orelse
                                 {no_route, [X || {_, [_ | _]} = X <- Missing]}
              end
      end, TimeoutMs).

%% Asks Fun again and again until it returns `true` (the result is then ok) or {ok, Value}
%% (the result is Value). An exception counts as "not yet". After TimeoutMs the last answer
%% is part of the error, so that a failed case says what was there instead.
-spec wait_until(fun(() -> true | {ok, Value} | term()), pos_integer()) -> ok | Value.
wait_until(Fun, TimeoutMs) ->
    poll(Fun, TimeoutMs, erlang:monotonic_time(millisecond) + TimeoutMs).

%%% ------------------------------------------------------------------------------------
%%% Programs: nodes that are not expected to boot, and other commands

%% The arguments of erl for a node, name included: what start/2 uses, for run_node/2.
-spec node_args(atom(), opts()) -> [string()].
node_args(Name, Opts) ->
    Flag = case maps:get(longnames, Opts, false) of true -> "-name"; false -> "-sname" end,
    [Flag, atom_to_list(node_name(Name, Opts)) | flags(Opts)].

%% The environment of a node of the current cluster. Flags that the user of this machine
%% has in his environment are taken out: `-proto_dist` given twice is ignored by OTP 25.
-spec node_env(opts()) -> [{string(), string() | false}].
node_env(Opts) ->
    Clean = [{Var, false} || Var <- ["ERL_FLAGS", "ERL_AFLAGS", "ERL_ZFLAGS", "ERL_LIBS",
                                     "ERL_EPMD_ADDRESS", "CHATTER_ADDRESS", "CHATTER_PORT",
                                     "CHATTER_KEY"]],
    Clean ++ [{"ERL_EPMD_PORT", integer_to_list(epmd_port())} | maps:get(env, Opts, [])].

%% run_node(Args, TimeoutMs, #{}).
-spec run_node([string()], pos_integer()) -> {non_neg_integer() | timeout, binary()}.
run_node(Args, TimeoutMs) -> run_node(Args, TimeoutMs, #{}).

%% Runs `erl -noinput Args` with the environment of a node until it ends by itself, and
%% returns its exit code and all that it wrote, standard error included. After TimeoutMs
%% it is killed and the code is `timeout`.
-spec run_node([string()], pos_integer(), run_opts()) ->
          {non_neg_integer() | timeout, binary()}.
run_node(Args, TimeoutMs, Opts) ->
    Env = node_env(#{env => maps:get(env, Opts, [])}),
    run(erl(), ["-noinput" | Args], TimeoutMs, Opts#{env => Env}).

%% The same for any program and with the environment as it is.
-spec run(file:name(), [string()], pos_integer(), run_opts()) ->
          {non_neg_integer() | timeout, binary()}.
run(Program, Args, TimeoutMs, Opts) ->
    Port = open_program(Program, Args, Opts),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    Result = collect(Port, erlang:monotonic_time(millisecond) + TimeoutMs, []),
    element(1, Result) =:= timeout andalso signal("KILL", integer_to_list(OsPid)),
    Result.

%% Starts a program that goes on: a node that is not a peer. It ends with close/1 or
%% stop_all/0; await_output/3 waits for something that it says.
-spec open(file:name(), [string()], run_opts()) -> program().
open(Program, Args, Opts) ->
    Server = server(),
    Reader = spawn(fun() ->
                           Port = open_program(Program, Args, Opts),
                           Watch = erlang:monitor(process, Server),
                           read(Port, Watch, <<>>)
                   end),
    Handle = #{server => Server, reader => Reader},
    true = ets:insert(table(), {{program, Reader}, Handle}),
    Handle.

%% Waits until the output of the program matches the regular expression; returns all output.
-spec await_output(program(), iodata(), pos_integer()) -> binary().
await_output(#{reader := Reader}, Pattern, TimeoutMs) ->
    wait_until(fun() ->
                       case ask(Reader, output) of
                           {ok, {State, Output}} ->
                               case re:run(Output, Pattern) of
                                   {match, _} -> {ok, Output};
                                   nomatch -> {State, Output}
                               end;
                           Other -> Other
                       end
               end, TimeoutMs).

%% Waits until the program ends by itself; returns its exit code and all output.
-spec await_exit(program(), pos_integer()) -> {non_neg_integer(), binary()}.
await_exit(#{reader := Reader}, TimeoutMs) ->
    wait_until(fun() ->
                       case ask(Reader, output) of
                           {ok, {{exit_status, Code}, Output}} -> {ok, {Code, Output}};
                           Other -> {still, Other}
                       end
               end, TimeoutMs).

%% Ends the program (SIGTERM, then SIGKILL).
-spec close(program()) -> ok.
close(#{reader := Reader}) ->
    _ = ask(Reader, stop),
    true = ets:delete(table(), {program, Reader}),
    ok.

%%% ------------------------------------------------------------------------------------
%%% Places

%% The root of the checkout.
-spec root() -> file:filename().
root() ->
    up_to_root(filename:absname(filename:dirname(code:which(?MODULE)))).

%% The directory of Chatter's modules, built.
-spec ebin() -> file:filename().
ebin() ->
    case code:which(chatter_dist) of
        Path when is_list(Path), Path =/= [] -> filename:absname(filename:dirname(Path));
        _ -> filename:join([root(), "_build", "default", "lib", "chatter", "ebin"])
    end.

%% The NIF, built: what CHATTER_NATIVE_LIB is set to in builds that must not run cargo.
-spec native_lib() -> file:filename().
native_lib() -> filename:join([root(), "priv", "libchatter_nif.so"]).

%% A TCP port that is free now and that no outgoing connection is given by the system.
-spec free_port() -> inet:port_number().
free_port() ->
    Port = 20000 + rand:uniform(9000),
    case gen_tcp:listen(Port, []) of
        {ok, Socket} -> ok = gen_tcp:close(Socket), Port;
        {error, eaddrinuse} -> free_port()
    end.

%%% ------------------------------------------------------------------------------------
%%% Internal: nodes

shape(Links, Opts) ->
    Peers = [start(short(I), shape_opts(Neighbours, Opts)) || {I, Neighbours} <- Links],
    maps:get(carrier, Opts, chatter) =/= stock andalso maps:get(await, Opts, true)
        andalso await_routes(Peers, ?ROUTES_TIMEOUT_MS),
    Peers.

shape_opts(_Neighbours, #{carrier := stock} = Opts) -> Opts;
shape_opts(Neighbours, Opts) ->
    Opts#{links => static, neighbours => [short(I) || I <- Neighbours]}.

short(I) -> list_to_atom("n" ++ integer_to_list(I)).

%% The end of its input tells the node to halt.
hang_up(#{control := Control}) -> try peer:stop(Control) catch exit:_ -> ok end.

node_name(Name, Opts) ->
    case lists:member($@, atom_to_list(Name)) of
        true ->
            Name;
        false ->
            Suffix = maps:get(suffix, cluster()),
            list_to_atom(atom_to_list(Name) ++ Suffix ++ "@" ++ host(Opts))
    end.

host(#{longnames := true}) -> "127.0.0.1";
host(_) -> {ok, Host} = inet:gethostname(), hd(string:lexemes(Host, ".")).

flags(Opts) ->
    carrier_flags(maps:get(carrier, Opts, chatter), Opts)
        ++ ["-hidden" || maps:get(hidden, Opts, false)]
        ++ ["-setcookie", maps:get(cookie, Opts, cookie())]
        ++ maps:get(args, Opts, []).

carrier_flags(stock, _) ->
    ["-start_epmd", "false"];
carrier_flags(release, Opts) ->
    configuration_flags(Opts);
carrier_flags(Carrier, Opts) ->
    Protocols = case Carrier of chatter -> ["chatter"]; both -> ["inet_tcp", "chatter"] end,
    ["-pa", maps:get(ebin, Opts, ebin()), "-proto_dist" | Protocols]
        ++ ["-epmd_module", "chatter_epmd", "-start_epmd", "false"]
        ++ configuration_flags(Opts).

configuration_flags(Opts) ->
    lists:append([["-chatter", atom_to_list(Key), lists:flatten(io_lib:format("~0p", [Value]))]
                  || {Key, Value} <- configuration(Opts)]).

%% Multicast is off unless asked for: clusters that run side by side need not hear each other.
configuration(Opts) ->
    Given = maps:get(chatter, Opts, []),
    [{multicast, false} || not lists:keymember(multicast, 1, Given)]
        ++ [{links, Links} || #{links := Links} <- [Opts]]
        ++ [{neighbours, [neighbour(N, Opts) || N <- Ns]} || #{neighbours := Ns} <- [Opts]]
        ++ Given.

neighbour(#{node := Node}, _) -> Node;
neighbour({Name, Metric}, Opts) when is_atom(Name) -> {node_name(Name, Opts), Metric};
neighbour({Host, Port}, _) -> {Host, Port};
neighbour(Name, Opts) -> node_name(Name, Opts).

erl() ->
    Erl = os:find_executable("erl"),
    true = is_list(Erl),
    Erl.

alive(OsPid) ->
    case file:read_file("/proc/" ++ OsPid ++ "/stat") of
        {ok, Stat} -> nomatch =:= re:run(Stat, "^\\d+ \\(.*\\) [ZX] ");
        {error, enoent} -> filelib:is_dir("/proc/self") =:= false andalso
                               os:cmd("kill -0 " ++ OsPid ++ " 2>&1") =:= "";
        {error, _} -> false
    end.

signal(Signal, OsPid) ->
    _ = os:cmd("kill -" ++ Signal ++ " " ++ OsPid),
    ok.

poll(Fun, TimeoutMs, Deadline) ->
    Answer = try Fun() catch Class:Reason:Stack -> {Class, Reason, Stack} end,
    case Answer of
        true -> ok;
        {ok, Value} -> Value;
        _ ->
            case erlang:monotonic_time(millisecond) >= Deadline of
                true -> error({timeout, #{waited_ms => TimeoutMs, last => Answer}});
                false -> receive after ?POLL_MS -> poll(Fun, TimeoutMs, Deadline) end
            end
    end.

%%% ------------------------------------------------------------------------------------
%%% Internal: programs

open_program(Program, Args, Opts) ->
    Path = case os:find_executable(Program) of false -> Program; Found -> Found end,
    open_port({spawn_executable, Path},
              [{args, Args}, {env, maps:get(env, Opts, [])}, exit_status, stderr_to_stdout,
               binary, hide] ++ [{cd, Dir} || #{cd := Dir} <- [Opts]]).

collect(Port, Deadline, Acc) ->
    Left = max(0, Deadline - erlang:monotonic_time(millisecond)),
    receive
        {Port, {data, Data}} -> collect(Port, Deadline, [Acc, Data]);
        {Port, {exit_status, Code}} -> {Code, iolist_to_binary(Acc)}
    after Left ->
            {timeout, iolist_to_binary(Acc)}
    end.

read(Port, Watch, Output) ->
    receive
        {Port, {data, Data}} -> read(Port, Watch, <<Output/binary, Data/binary>>);
        {Port, {exit_status, Code}} -> ended(Watch, {exit_status, Code}, Output);
        {ask, From, Ref, output} ->
            From ! {Ref, {running, Output}},
            read(Port, Watch, Output);
        {ask, From, Ref, stop} -> kill_program(Port), From ! {Ref, stopped};
        {'DOWN', Watch, process, _, _} -> kill_program(Port)
    end.

ended(Watch, State, Output) ->
    receive
        {ask, From, Ref, output} -> From ! {Ref, {State, Output}}, ended(Watch, State, Output);
        {ask, From, Ref, stop} -> From ! {Ref, stopped};
        {'DOWN', Watch, process, _, _} -> ok
    end.

kill_program(Port) ->
    case erlang:port_info(Port, os_pid) of
        undefined ->
            ok;
        {os_pid, Pid} ->
            OsPid = integer_to_list(Pid),
            Gone = fun() -> not alive(OsPid) end,
            signal("TERM", OsPid),
            try wait_until(Gone, ?STOP_TIMEOUT_MS)
            catch error:{timeout, _} -> signal("KILL", OsPid)
            end
    end.

ask(Process, Question) ->
    Ref = erlang:monitor(process, Process),
    Process ! {ask, self(), Ref, Question},
    receive
        {Ref, Answer} -> erlang:demonitor(Ref, [flush]), {ok, Answer};
        {'DOWN', Ref, process, _, Reason} -> {down, Reason}
    after 3 * ?STOP_TIMEOUT_MS ->
            erlang:demonitor(Ref, [flush]), no_answer
    end.

%% Stock nodes need a stock epmd at the port of the cluster, unless Chatter serves it. The
%% shell around it ends it when its own input ends: when the program is closed, or the
%% runner is gone.
ensure_stock_epmd() ->
    Port = epmd_port(),
    case listening(Port) of
        true -> ok;
        false ->
            Script = "exec 3<&0; epmd -port " ++ integer_to_list(Port)
                ++ " <&- & pid=$!; trap 'kill $pid; exit' TERM; read _ <&3; kill $pid",
            _ = open("sh", ["-c", Script], #{}),
            wait_until(fun() -> listening(Port) end, ?BOOT_TIMEOUT_MS)
    end.

listening(Port) ->
    case gen_tcp:connect({127, 0, 0, 1}, Port, []) of
        {ok, Socket} -> ok = gen_tcp:close(Socket), true;
        {error, _} -> false
    end.

%%% ------------------------------------------------------------------------------------
%%% Internal: the server

cluster() ->
    case ets:lookup(table(), cluster) of
        [{cluster, Cluster}] -> Cluster;
        [] -> ok = new(), cluster()
    end.

table() -> _ = server(), ?MODULE.

server() ->
    case whereis(?MODULE) of
        undefined -> start_server();
        Pid -> Pid
    end.

start_server() ->
    Parent = self(),
    {Pid, Ref} = spawn_monitor(
                   fun() ->
                           ?MODULE = ets:new(?MODULE, [named_table, public]),
                           true = register(?MODULE, self()),
                           Parent ! {self(), ready},
                           receive stop -> ok end
                   end),
    receive
        {Pid, ready} -> erlang:demonitor(Ref, [flush]), Pid;
        {'DOWN', Ref, process, Pid, _} -> server() % another process was faster
    end.

new_cookie() -> binary_to_list(binary:encode_hex(random_bytes(32))).

%% From the system, without the application crypto.
random_bytes(N) ->
    {ok, File} = file:open("/dev/urandom", [read, raw, binary]),
    {ok, Bytes} = file:read(File, N),
    ok = file:close(File),
    Bytes.

up_to_root(Dir) ->
    case filelib:is_regular(filename:join([Dir, "native", "build.sh"])) of
        true -> Dir;
        false when Dir =:= "/" -> error(no_checkout_above_the_test_modules);
        false -> up_to_root(filename:dirname(Dir))
    end.
