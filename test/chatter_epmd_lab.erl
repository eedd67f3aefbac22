%% SPDX-License-Identifier: Apache-2.0
%%
%% What the suites of the epmd share: ports, raw clients of the protocol, stock
%% programs, nodes.
-module(chatter_epmd_lab).

-export([free_port/0, wait_until/1, wait_until/2, ms/1]).
-export([connect/1, connect/3, request/2, exchange/2, exchange/3, frame/1, alive2/2, alive2/3]).
-export([names/1, alive/2, alive/3, registry/1, registry/2]).
-export([start_epmd/1, start_epmd/2, start_program/2, run/2, run/3, run_ours/2, kill/1]).
-export([unnamed/2, code_path/0, at_end/1]).
-export([node/3, node/4, stock/3, stop/1, name_of/1, non_loopback/0]).
-export([refused/1, is_serving/1, epmd/2, listing/2]).

-define(DEADLINE_MS, 15000).
%% A busy machine is slow to boot a VM.
-define(BOOT_MS, 60000).

%%% Time and ports -----------------------------------------------------------------------

%% A port that nobody listens on, below the ephemeral ones so that nobody gets it by chance.
free_port() ->
    Offset = erlang:unique_integer([positive]) * 7 + list_to_integer(os:getpid()) * 131,
    Port = 12000 + Offset rem 19000,
    case gen_tcp:listen(Port, [{ip, {0, 0, 0, 0}}]) of
        {ok, Socket} -> gen_tcp:close(Socket), Port;
        {error, _} -> free_port()
    end.

%% Poll until the fun answers something else than false.
wait_until(Fun) -> wait_until(Fun, ?DEADLINE_MS).

wait_until(Fun, Ms) -> wait_until_at(Fun, erlang:monotonic_time(millisecond) + Ms).

wait_until_at(Fun, Deadline) ->
    case Fun() of
        false ->
            erlang:monotonic_time(millisecond) > Deadline andalso error(deadline),
            receive after 3 -> ok end,
            wait_until_at(Fun, Deadline);
        Answer -> Answer
    end.

ms(Fun) ->
    {Us, Answer} = timer:tc(Fun),
    {Us div 1000, Answer}.

%%% Raw clients --------------------------------------------------------------------------

connect(Port) -> connect({127, 0, 0, 1}, Port, []).

connect(Address, Port, Options) ->
    Family = case tuple_size(Address) of 4 -> inet; 8 -> inet6 end,
    {ok, Socket} = gen_tcp:connect(Address, Port, [Family, binary, {active, false},
                                                   {nodelay, true} | Options], 5000),
    Socket.

frame(Body) -> <<(iolist_size(Body)):16, (iolist_to_binary(Body))/binary>>.

alive2(Name, Port) -> alive2(Name, Port, #{}).

alive2(Name, Port, Opts) ->
    High = maps:get(high, Opts, 6),
    Extra = maps:get(extra, Opts, <<>>),
    frame(<<120, Port:16, 77, 0, High:16, 5:16, (byte_size(Name)):16, Name/binary,
            (byte_size(Extra)):16, Extra/binary>>).

%% Send one body, return all until the close.
request(Port, Body) ->
    {Answer, closed} = exchange(Port, [frame(Body)]),
    Answer.

%% Send pieces; answer what came, and whether the connection was closed or left open.
exchange(Port, Pieces) -> exchange(Port, Pieces, keep).

exchange(Port, Pieces, End) ->
    Socket = connect(Port),
    lists:foreach(fun(Piece) -> send_piece(Socket, Piece) end, Pieces),
    End =:= shutdown andalso gen_tcp:shutdown(Socket, write),
    Answer = drain(Socket, <<>>),
    gen_tcp:close(Socket),
    Answer.

%% The pause makes it likely, not certain, that the pieces are read one by one.
send_piece(Socket, Piece) ->
    _ = gen_tcp:send(Socket, Piece),
    receive after 2 -> ok end.

drain(Socket, Got) ->
    case gen_tcp:recv(Socket, 0, 150) of
        {ok, Data} -> drain(Socket, <<Got/binary, Data/binary>>);
        {error, timeout} -> {Got, open};
        {error, _} -> {Got, closed}
    end.

%% The names in the registry at a port, sorted; [] if there is none.
names(Port) ->
    case chatter_epmd_client:names({127, 0, 0, 1}, Port, 2000) of
        {ok, Port, Names} -> lists:sort(Names);
        {error, _} -> []
    end.

%% Register as a stock node does.
alive(EpmdPort, Request) -> alive({127, 0, 0, 1}, EpmdPort, Request).

alive(Address, EpmdPort, Request) ->
    Socket = connect(Address, EpmdPort, []),
    ok = gen_tcp:send(Socket, Request),
    {ok, <<Tag, Result>>} = gen_tcp:recv(Socket, 2, 5000),
    {ok, Code} = gen_tcp:recv(Socket, case Tag of 118 -> 4; 121 -> 2 end, 5000),
    {Result, binary:decode_unsigned(Code), Socket}.

%% A registry in this VM, until the case ends.
registry(Port) -> registry(Port, #{}).

registry(Port, Options) ->
    Defaults = #{port => Port, addresses => "", relaxed => false},
    Case = self(),
    spawn(fun() -> keep_registry(Case, maps:merge(Defaults, Options)) end),
    receive {serving, Pid} -> Pid after 5000 -> error(no_registry) end.

keep_registry(Case, Options) ->
    {ok, Pid} = chatter_epmd_registry:start_link(anonymous),
    ok = chatter_epmd_registry:serve(Pid, chatter_epmd_config:options(Options)),
    Case ! {serving, Pid},
    Ref = monitor(process, Case),
    pass_on(Case, Ref),
    gen_server:stop(Pid).

pass_on(Case, Ref) ->
    receive
        {'DOWN', Ref, _, _, _} -> ok;
        Message -> Case ! Message, pass_on(Case, Ref)
    end.

%% Do something when the calling case has ended, however it did.
at_end(Fun) ->
    Case = self(),
    spawn(fun() -> Ref = monitor(process, Case),
                   receive {'DOWN', Ref, _, _, _} -> Fun() end
          end).

%% An address of this host that is not a loopback one.
non_loopback() ->
    {ok, Interfaces} = inet:getifaddrs(),
    [Address | _] = [A || {_, Options} <- Interfaces, {addr, {B, _, _, _} = A} <- Options,
                          B =/= 127],
    Address.

%%% Programs -----------------------------------------------------------------------------

start_epmd(Port) -> start_epmd(Port, []).

start_epmd(Port, Args) ->
    Program = start_program(os:find_executable("epmd"),
                            ["-port", integer_to_list(Port) | Args]),
    wait_until(fun() -> chatter_epmd_client:names({127, 0, 0, 1}, Port, 1000)
                            =/= {error, unreachable} end),
    Program.

%% Runs until the case ends.
start_program(Executable, Args) ->
    Port = open_port({spawn_executable, Executable},
                     [{args, Args}, exit_status, stderr_to_stdout, binary, hide]),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    _ = at_end(fun() -> kill(integer_to_list(OsPid)) end),
    Port.

%% Run to the end: exit status and output.
run(Program, Args) -> run(Program, Args, []).

run(Program, Args, Env) ->
    Port = open_port({spawn_executable, os:find_executable(Program)},
                     [{args, Args}, {env, Env}, exit_status, stderr_to_stdout, binary, hide]),
    collect(Port, []).

run_ours(Args, Env) ->
    run("erl", ["-noinput", "-pa", code_path(), "-run", "chatter_epmd", "main" | Args], Env).

collect(Port, Acc) ->
    receive
        {Port, {data, Data}} -> collect(Port, [Acc | Data]);
        {Port, {exit_status, Status}} -> {Status, iolist_to_binary(Acc)}
    after ?DEADLINE_MS -> error({still_running, Acc})
    end.

%% End a program at once.
kill(Port) when is_port(Port) ->
    case erlang:port_info(Port, os_pid) of
        {os_pid, Pid} -> kill(integer_to_list(Pid));
        undefined -> ok
    end;
kill(OsPid) -> os:cmd("kill -9 " ++ OsPid).

%%% Nodes --------------------------------------------------------------------------------

%% A node with chatter_epmd; `Flags' are more of its flags.
node(Name, EpmdPort, Flags) -> node(Name, EpmdPort, Flags, []).

node(Name, EpmdPort, Flags, Env) ->
    stock(Name, EpmdPort, ["-epmd_module", "chatter_epmd" | Flags], Env).

%% A node with erl_epmd.
stock(Name, EpmdPort, Flags) -> stock(Name, EpmdPort, Flags, []).

stock(Name, EpmdPort, Flags, Env) ->
    Options = #{name => Name, host => "localhost", connection => standard_io,
                wait_boot => ?BOOT_MS,
                args => ["-start_epmd", "false", "-setcookie", "chatter", "-pa", code_path(),
                         filename:dirname(code:which(?MODULE)) | Flags],
                env => [{"ERL_EPMD_PORT", integer_to_list(EpmdPort)} | Env]},
    {ok, Peer, _Node} = peer:start(Options),
    _ = at_end(fun() -> catch peer:stop(Peer) end),
    {Peer, peer:call(Peer, os, getpid, [])}.

%% A VM that is not distributed.
unnamed(EpmdPort, Flags) ->
    {ok, Peer, _} = peer:start(#{connection => standard_io,
                              args => ["-start_epmd", "false", "-setcookie", "chatter",
                                       "-pa", code_path() | Flags],
                              env => [{"ERL_EPMD_PORT", integer_to_list(EpmdPort)}]}),
    _ = at_end(fun() -> catch peer:stop(Peer) end),
    {Peer, peer:call(Peer, os, getpid, [])}.

stop({Peer, _OsPid}) -> peer:stop(Peer);
stop(Peers) -> lists:foreach(fun stop/1, Peers).

name_of({Peer, _OsPid}) -> peer:call(Peer, erlang, node, []).

%% Where the beams of chatter_epmd are.
code_path() -> filename:dirname(code:which(chatter_epmd)).

%%% What is there ------------------------------------------------------------------------

%% Whether nobody listens on a port.
refused(Port) ->
    case gen_tcp:connect({127, 0, 0, 1}, Port, []) of
        {error, econnrefused} -> true;
        {ok, S} -> gen_tcp:close(S), false
    end.

%% Whether the epmd in a node serves the port of the host.
is_serving({Peer, _}) ->
    #{registry := #{serving := Serving}} = peer:call(Peer, chatter_epmd, info, []),
    Serving.

%% What the program epmd says.
epmd(Port, Args) -> run("epmd", ["-port", integer_to_list(Port) | Args]).

%% What it is to say of these names.
listing(Port, Lines) ->
    iolist_to_binary(["epmd: up and running on port ", integer_to_list(Port), " with data:\n",
                      Lines]).
