%% A network laboratory on one machine: every node has a network namespace of its own, and the
%% links between them can be cut, slowed down and disturbed. docs/testing.md shows how to use it.
%%
%%     Lab = chatter_lab:open(#{nodes => 3, network => switch, seed => 1}),
%%     Peer = chatter_lab:start(Lab, 1, #{neighbours => [chatter_lab:node_name(2)]}),
%%     ok = chatter_lab:cut(Lab, [{1, 2}]),              % from 1 to 2; the way back is open
%%     ok = chatter_lab:close(Lab)
%%
%% Nodes are counted from 1. Node I is called nI@10.77.0.I. Three kinds of network:
%%
%%   bridge  veth pairs and a bridge of the kernel: cuts, and rates by tbf
%%   {routed, N}  a bridge for each N nodes and a router of the kernel between the bridges, which
%%           lets no multicast through: rates by tbf
%%   switch  TAP devices and native/chatter-lab, which also loses, delays, repeats and reorders
%%           frames for each directed pair, by a seed
%%
%% Processes: a server for each laboratory, linked to nobody, which owns two ports: the switch, and
%% test/lab/guard, which removes the namespaces and all that runs in them when its input ends. So
%% nothing is left when this VM is gone, in whatever way; and what is left even so (the guard was
%% killed too) goes when the next laboratory is opened.
-module(chatter_lab).

-export([available/0, open/1, close/1, start/3, node_name/1, address/1, size/1]).
-export([cut/2, heal/2, shape/3, reset/2, rate/3, figures/1, both/1, exec/2]).

-export_type([lab/0, pair/0, setting/0]).

-opaque lab() :: #{server := pid(), prefix := string(), nodes := pos_integer(),
                   network := network()}.

-type network() :: bridge | switch | {routed, NodesPerBridge :: pos_integer()}.

%% From one node to another.
-type pair() :: {pos_integer(), pos_integer()}.

%% loss, duplicate, reorder, corrupt: percent of the frames, group_loss: of those to multicast
%% groups; delay, jitter: milliseconds.
-type setting() :: {loss | group_loss | duplicate | reorder | corrupt | delay | jitter, number()}
                 | {rate, BytesPerSecond :: non_neg_integer()}.

-define(NOWHERE, "02:00:00:00:ff:ff").
-define(TIMEOUT_MS, 20000).

%%% ------------------------------------------------------------------------------------
%%% Setting up

%% Whether this machine can have a laboratory: the result of init_per_suite if not.
-spec available() -> ok | {skip, string()}.
available() ->
    Missing = [Program || Program <- ["ip", "tc", "nsenter", "setsid"], not is_list(find(Program))],
    case {string:trim(os:cmd("id -u")), Missing} of
        {"0", []} -> probe();
        {"0", _} -> {skip, "no laboratory: missing " ++ lists:join(", ", Missing)};
        _ -> {skip, "no laboratory: network namespaces need root"}
    end.

probe() ->
    Name = "chlab." ++ os:getpid() ++ ".probe",
    Script = ["ip netns add ", Name, " && nsenter --net=/run/netns/", Name,
              " ip link add probe0 type veth peer name probe1 && ip netns delete ", Name,
              " && test -c /dev/net/tun"],
    try script(Script)
    catch error:{script, _, Output} ->
            _ = os:cmd("ip netns delete " ++ Name),
            {skip, "no laboratory: this kernel or container allows no network namespaces: "
             ++ string:trim(Output)}
    end.

%% nodes: 1 to 250. seed: of the switch (default 1).
-spec open(#{nodes := pos_integer(), network => network(), seed => non_neg_integer()}) -> lab().
open(#{nodes := Nodes} = Opts) when Nodes =< 250 ->
    _ = os:cmd(guard() ++ " --leftovers"),
    Lab = #{network => maps:get(network, Opts, switch), nodes => Nodes,
            prefix => lists:concat(["chlab.", os:getpid(), ".",
                                    erlang:unique_integer([positive]), "."])},
    Caller = self(),
    {Pid, Ref} = spawn_monitor(fun() -> init(Lab, maps:get(seed, Opts, 1), Caller) end),
    receive
        {Pid, ready} -> erlang:demonitor(Ref, [flush]), Lab#{server => Pid};
        {'DOWN', Ref, process, Pid, Reason} -> error({laboratory, Reason})
    end.

%% Removes the namespaces; what still runs in them is killed. Returns when they are gone.
-spec close(lab()) -> ok.
close(#{server := Server, prefix := Prefix}) ->
    Ref = erlang:monitor(process, Server),
    Server ! stop,
    receive {'DOWN', Ref, process, Server, _} -> ok end,
    chatter_cluster:wait_until(
      fun() -> nomatch =:= string:find(os:cmd("ip netns list"), Prefix) end, ?TIMEOUT_MS).

%% Starts node I; options as for chatter_cluster:start/2, where neighbours are full names.
-spec start(lab(), pos_integer(), chatter_cluster:opts()) -> chatter_cluster:peer().
start(Lab, I, Opts) ->
    chatter_work:start(node_name(I), Opts#{longnames => true, exec => exec(Lab, I)}).

%% What starts erl in the namespace of node I: `exec` of chatter_cluster.
-spec exec(lab(), pos_integer()) -> {file:name(), [string()]}.
exec(Lab, I) -> {find("nsenter"), ["--net=" ++ path(Lab, I), find("erl")]}.

-spec node_name(pos_integer()) -> node().
node_name(I) -> list_to_atom(lists:concat(["n", I, "@", address(I)])).

-spec address(pos_integer()) -> string().
address(I) -> lists:concat(["10.77.0.", I]).

-spec size(lab()) -> pos_integer().
size(#{nodes := Nodes}) -> Nodes.

%%% ------------------------------------------------------------------------------------
%%% Disturbing

%% Each pair and its way back.
-spec both([pair()]) -> [pair()].
both(Pairs) -> lists:usort(lists:append([[{A, B}, {B, A}] || {A, B} <- Pairs])).

%% From now on nothing passes in these directions, and nobody is told.
-spec cut(lab(), [pair()]) -> ok.
cut(#{network := switch} = Lab, Pairs) -> tell(Lab, Pairs, "set", " cut=1");
cut(#{network := bridge} = Lab, Pairs) -> neighbours(Lab, [{A, B, ?NOWHERE} || {A, B} <- Pairs]).

%% All passes again as if nothing had been.
-spec heal(lab(), [pair()]) -> ok.
heal(#{network := switch} = Lab, Pairs) -> tell(Lab, Pairs, "clear", "");
heal(#{network := bridge} = Lab, Pairs) -> neighbours(Lab, [{A, B, mac(B)} || {A, B} <- Pairs]).

%% What happens to frames in these directions (switch only). What is not named stays.
-spec shape(lab(), [pair()], [setting()]) -> ok.
shape(#{network := switch} = Lab, Pairs, Settings) ->
    tell(Lab, Pairs, "set", [setting(S) || S <- Settings]).

%% The next TCP segment becomes a reset (switch only); both ends of the connection then see one.
-spec reset(lab(), [pair()]) -> ok.
reset(#{network := switch} = Lab, Pairs) -> tell(Lab, Pairs, "reset", "").

%% What node I may send in all, by tbf; `none` ends it.
-spec rate(lab(), pos_integer(), pos_integer() | none) -> ok.
rate(Lab, I, none) ->
    _ = os:cmd(lists:flatten(["tc -n ", namespace(Lab, I), " qdisc del dev eth0 root"])),
    ok;
rate(Lab, I, KbitPerSecond) ->
    Burst = max(16, KbitPerSecond div 800), % KiB: 10 ms
    script(io_lib:format("tc -n ~s qdisc replace dev eth0 root tbf rate ~bkbit burst ~bkb "
                         "latency 50ms", [namespace(Lab, I), KbitPerSecond, Burst])).

%% The figures of the switch since its start.
-spec figures(lab()) -> #{atom() => non_neg_integer()}.
figures(#{network := switch} = Lab) ->
    "ok" ++ Words = command(Lab, "stats"),
    maps:from_list([begin [Key, Value] = string:lexemes(Word, "="),
                          {list_to_atom(Key), list_to_integer(Value)}
                    end || Word <- string:lexemes(Words, " ")]).

setting({rate, Bytes}) -> [" rate=", integer_to_list(Bytes)];
setting({Key, Ms}) when Key =:= delay; Key =:= jitter ->
    [" ", atom_to_list(Key), "=", integer_to_list(round(Ms * 1000))];
setting({Key, Percent}) ->
    [" ", atom_to_list(Key), "=", integer_to_list(round(Percent * 10000))].

tell(Lab, Pairs, Verb, Rest) ->
    [] = [Answer || {A, B} <- Pairs,
                    Answer <- [command(Lab, io_lib:format("~s ~b ~b~s", [Verb, A, B, Rest]))],
                    Answer =/= "ok"],
    ok.

neighbours(Lab, Entries) ->
    script([["ip -n ", namespace(Lab, A), " neigh replace ", address(B), " lladdr ", Mac,
             " nud permanent dev eth0\n"] || {A, B, Mac} <- Entries]).

%%% ------------------------------------------------------------------------------------
%%% The server

init(#{prefix := Prefix} = Lab, Seed, Caller) ->
    Guard = open_port({spawn_executable, find("setsid")}, [{args, [guard(), Prefix]}, binary]),
    ok = script(namespaces(Lab)),
    Switch = open_switch(Lab, Seed),
    ok = script([wires(Lab), [host(Lab, I) || I <- places(Lab)]]),
    Caller ! {self(), ready},
    serve(Guard, Switch).

serve(Guard, Switch) ->
    receive
        {command, From, Ref, Line} ->
            true = port_command(Switch, [Line, $\n]),
            receive
                {Switch, {data, {eol, Answer}}} -> From ! {Ref, Answer};
                {Switch, {exit_status, Code}} -> exit({switch, Code})
            end,
            serve(Guard, Switch);
        {Switch, {exit_status, Code}} -> exit({switch, Code});
        stop -> ok
    end.

command(#{server := Server}, Line) ->
    Ref = erlang:monitor(process, Server),
    Server ! {command, self(), Ref, Line},
    receive
        {Ref, Answer} -> erlang:demonitor(Ref, [flush]), Answer;
        {'DOWN', Ref, process, _, Reason} -> error({laboratory, Reason})
    end.

open_switch(#{network := switch, nodes := Nodes} = Lab, Seed) ->
    Args = ["--net=" ++ path(Lab, hub), switch(), integer_to_list(Nodes), integer_to_list(Seed)],
    Port = open_port({spawn_executable, find("nsenter")},
                     [{args, Args}, {line, 4096}, exit_status]),
    receive
        {Port, {data, {eol, "ready"}}} -> Port;
        {Port, {exit_status, Code}} -> exit({switch, Code})
    after ?TIMEOUT_MS -> exit({switch, silent})
    end;
open_switch(_, _) ->
    none.

%% The switch, built. cargo says where it put it.
switch() ->
    Build = "cd " ++ chatter_cluster:root() ++ " && PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
        " && cargo build --quiet --locked --release --package chatter-lab && cd - >/dev/null",
    ok = script(Build),
    Target = filename:join(chatter_cluster:root(), os:getenv("CARGO_TARGET_DIR", "target")),
    filename:join([Target, "release", "chatter-lab"]).

namespaces(Lab) -> [["ip netns add ", namespace(Lab, Place), "\n"] || Place <- [hub | places(Lab)]].

wires(#{network := switch} = Lab) ->
    [["ip -n ", namespace(Lab, hub), " link set port", integer_to_list(I), " netns ",
      namespace(Lab, I), " name eth0 address ", mac(I), "\n"] || I <- places(Lab)];
wires(#{network := bridge} = Lab) ->
    [bridge(Lab, "bridge"), [port(Lab, I, "bridge") || I <- places(Lab)]];
wires(#{network := {routed, Size}, nodes := Nodes} = Lab) ->
    Bridge = fun(Subnet) -> lists:concat(["bridge", Subnet]) end,
    ["nsenter --net=", path(Lab, hub), " sysctl -q -w net.ipv4.ip_forward=1\n",
     [[bridge(Lab, Bridge(S)),
       "ip -n ", namespace(Lab, hub), " addr add ", gateway(S), "/32 dev ", Bridge(S), "\n"]
      || S <- lists:seq(0, (Nodes - 1) div Size)],
     [[port(Lab, I, Bridge(subnet(Lab, I))),
       "ip -n ", namespace(Lab, hub), " route add ", address(I), "/32 dev ",
       Bridge(subnet(Lab, I)), "\n"] || I <- places(Lab)]].

bridge(Lab, Name) ->
    Hub = ["ip -n ", namespace(Lab, hub)],
    [Hub, " link add ", Name, " type bridge\n", Hub, " link set ", Name, " up\n"].

port(Lab, I, Bridge) ->
    Hub = ["ip -n ", namespace(Lab, hub)],
    [Hub, " link add port", integer_to_list(I), " type veth peer name eth0 address ", mac(I),
     " netns ", namespace(Lab, I), "\n",
     Hub, " link set port", integer_to_list(I), " master ", Bridge, " up\n"].

%% Neighbour entries are permanent: links are cut, not the resolution of addresses.
host(Lab, I) ->
    ["nsenter --net=", path(Lab, I), " sysctl -q -w net.ipv6.conf.all.disable_ipv6=1\n",
     "ip -n ", namespace(Lab, I), " -batch - <<end\nlink set lo up\naddr add ", address(I),
     prefix(Lab), " dev eth0\nlink set eth0 up\n",
     [["neigh replace ", address(J), " lladdr ", mac(J), " nud permanent dev eth0\n"]
      || J <- places(Lab), J =/= I, subnet(Lab, J) =:= subnet(Lab, I)],
     routes(Lab, I),
     "end\n"].

%% The addresses of a subnet have no common prefix: neighbours have a route each.
prefix(#{network := {routed, _}}) -> "/32";
prefix(_) -> "/24".

routes(#{network := {routed, _}} = Lab, I) ->
    [[["route add ", address(J), " dev eth0 src ", address(I), "\n"]
      || J <- places(Lab), J =/= I, subnet(Lab, J) =:= subnet(Lab, I)],
     "route add default via ", gateway(subnet(Lab, I)), " dev eth0 onlink src ", address(I), "\n"];
routes(_, _) -> [].

subnet(#{network := {routed, Size}}, I) -> (I - 1) div Size;
subnet(_, _) -> 0.

gateway(Subnet) -> lists:concat(["10.77.1.", Subnet + 1]).

places(#{nodes := Nodes}) -> lists:seq(1, Nodes).

namespace(#{prefix := Prefix}, Place) -> lists:concat([Prefix, Place]).

path(Lab, Place) -> "/run/netns/" ++ namespace(Lab, Place).

mac(I) -> io_lib:format("02:00:00:00:~2.16.0b:~2.16.0b", [I div 256, I rem 256]).

guard() -> filename:join([chatter_cluster:root(), "test", "lab", "guard"]).

find(Program) -> os:find_executable(Program, os:getenv("PATH") ++ ":/usr/sbin:/sbin").

%% Runs shell lines, and stops at the first that fails.
script(Lines) ->
    Text = unicode:characters_to_list(["set -e\n", Lines]),
    {Code, Output} = chatter_cluster:run("sh", ["-c", Text], 120000, #{}),
    Code =:= 0 orelse error({script, Code, binary_to_list(Output)}),
    ok.
