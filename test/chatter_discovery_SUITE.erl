%% Nodes that find each other by multicast, in network namespaces joined by a bridge: with no
%% configuration, several on a host, by IPv6, after sockets went silent and interfaces changed; and
%% what does not become of strangers.
-module(chatter_discovery_SUITE).
-behaviour(ct_suite).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_cluster, [wait_until/2]).
-import(chatter_work, [on/2]).

-define(TIMEOUT_MS, 20000).
-define(MULTICAST_PORT, 29999).
%% Of the flood: bytes of a datagram, how many go at once (64 KiB at most) and how many in a
%% millisecond (1 Gbit/s), and in how many parts it comes.
-define(DATAGRAM, 1400).
-define(BURST, 46).
-define(PER_MS, 89).
-define(ROUNDS, 5).

suite() -> [{timetrap, {minutes, 3}}].

all() -> [no_configuration, several_on_one_host, ipv6, wrong_key, multicast_off, static_links,
          silent_socket, interface_down_and_up, address_changes, names_and_net_ids,
          dns_names, forged_datagrams, sixteen_at_once].

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

%% A laboratory that ends with the case.
lab(Nodes) ->
    Lab = chatter_lab:open(#{nodes => Nodes, network => bridge}),
    _ = put(lab, Lab),
    Lab.

start(Lab, I) -> start(Lab, I, []).

start(Lab, I, Keys) -> start(Lab, I, Keys, #{}).

start(Lab, I, Keys, Opts) ->
    chatter_lab:start(Lab, I, Opts#{chatter => [{multicast, true} | Keys]}).

%% Runs a shell line in the namespace of node I.
in(Lab, I, Line) ->
    {Nsenter, [Net | _]} = chatter_lab:exec(Lab, I),
    {0, Output} = chatter_cluster:run(Nsenter, [Net, "sh", "-ec", Line], ?TIMEOUT_MS, #{}),
    Output.

figures(Peer) -> on(Peer, fun() -> maps:get(multicast, chatter:info()) end).

figure(Peer, Key) -> maps:get(Key, figures(Peer)).

await_one(Peers) -> chatter_cluster:await_routes(Peers, ?TIMEOUT_MS).

links(Peers) -> lists:sum([length(on(P, fun() -> chatter:links() end)) || P <- Peers]) div 2.

pause(Ms) -> receive after Ms -> ok end.

%%% ------------------------------------------------------------------------------------

%% Given nodes that are told nothing but their names, expect each to reach all others within a
%% second of its boot, and messages to pass.
no_configuration(_Config) ->
    Lab = lab(3),
    Peers = [begin
                 Peer = start(Lab, I),
                 Booted = erlang:monotonic_time(millisecond),
                 wait_until(fun() -> I - 1 =:= length(on(Peer, fun() -> chatter:nodes() end)) end,
                            ?TIMEOUT_MS),
                 Took = erlang:monotonic_time(millisecond) - Booted,
                 ct:log("node ~b reaches ~b others ~b ms after its boot", [I, I - 1, Took]),
                 ?assert(Took =< 1000),
                 Peer
             end || I <- [1, 2, 3]],
    await_one(Peers),
    [A, _, #{node := C}] = Peers,
    pong = on(A, fun() -> net_adm:ping(C) end),
    ?assert(links(Peers) >= 2).

%% Given three nodes in one namespace and one in another, expect all to find each other over one
%% port.
several_on_one_host(_Config) ->
    Lab = lab(2),
    Names = [list_to_atom("m" ++ integer_to_list(I) ++ "@10.77.0.1") || I <- [1, 2, 3]],
    Together = [chatter_work:start(Name, #{longnames => true, exec => chatter_lab:exec(Lab, 1),
                                           chatter => [{multicast, true}]}) || Name <- Names],
    Peers = [start(Lab, 2) | Together],
    await_one(Peers),
    wait_until(fun() -> lists:all(fun(P) -> figure(P, nodes) =:= 3 end, Peers) end, ?TIMEOUT_MS).

%% Given a group of IPv6, expect the same; the addresses that are dialled are of IPv6 alone.
ipv6(_Config) ->
    Lab = lab(2),
    [in(Lab, I, ["sysctl -qw net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.eth0.disable_ipv6=0\n"
                 "ip addr flush dev eth0\nip addr add fd77::", integer_to_list(I),
                 "/64 dev eth0 nodad"]) || I <- [1, 2]],
    Group = [{multicast_addr, "ff02::4:1"}],
    %% The names have addresses that nobody has any more: only what was found can be dialled.
    Peers = [A, B] = [start(Lab, I, Group) || I <- [1, 2]],
    await_one(Peers),
    [?assertEqual([<<"eth0">>], figure(P, interfaces)) || P <- Peers],
    Remotes = [maps:get(remote, L) || P <- [A, B], L <- on(P, fun() -> chatter:links() end)],
    ?assert(lists:any(fun(Remote) -> string:prefix(Remote, "[f") =/= nomatch end, Remotes)).

%% Given a node of another cluster, expect nobody to notice but the counters.
wrong_key(_Config) ->
    Lab = lab(3),
    Peers = [start(Lab, I, [{beacon_ms, 500}]) || I <- [1, 2]],
    Stranger = start(Lab, 3, [{beacon_ms, 500}], #{cookie => "another"}),
    await_one(Peers),
    Before = [figure(P, dials) || P <- Peers],
    wait_until(fun() -> lists:all(fun(P) -> figure(P, foreign) > 5 end, [Stranger | Peers]) end,
               ?TIMEOUT_MS),
    ?assertEqual(Before, [figure(P, dials) || P <- Peers]),
    ?assertMatch(#{nodes := 0, found := 0, dials := 0}, figures(Stranger)),
    ?assertEqual([], on(Stranger, fun() -> chatter:nodes() end)),
    [?assertMatch(#{nodes := 1, found := 1}, figures(P)) || P <- Peers].

%% Given `multicast false', expect no UDP socket; without it, one on the port.
multicast_off(_Config) ->
    Lab = lab(2),
    [Off, On] = [chatter_lab:start(Lab, I, #{chatter => [{multicast, I =:= 2}]}) || I <- [1, 2]],
    ?assertEqual({[], undefined}, {udp_ports(Off), on(Off, fun() ->
                                                                 maps:get(multicast, chatter:info())
                                                         end)}),
    wait_until(fun() -> udp_ports(On) =:= [?MULTICAST_PORT] end, ?TIMEOUT_MS),
    pause(500),
    ?assertEqual([], on(On, fun() -> chatter:nodes() end)).

%% The local ports of all UDP sockets in the namespace of a node.
udp_ports(#{os_pid := OsPid}) ->
    [list_to_integer(Hex, 16)
     || File <- ["udp", "udp6"],
        {ok, Text} <- [file:read_file(filename:join(["/proc", OsPid, "net", File]))],
        {match, Ports} <- [re:run(Text, "^ *\\d+: [0-9A-F]+:([0-9A-F]{4})",
                                  [multiline, global, {capture, all_but_first, list}])],
        [Hex] <- Ports].

%% Given static links, expect nodes to be found and known, and nobody dialled.
static_links(_Config) ->
    Lab = lab(2),
    Peers = [start(Lab, I, [], #{links => static}) || I <- [1, 2]],
    wait_until(fun() -> lists:all(fun(P) -> figure(P, nodes) =:= 1 end, Peers) end, ?TIMEOUT_MS),
    pause(1000),
    ?assertEqual([0, 0], [figure(P, dials) || P <- Peers]),
    ?assertEqual(0, links(Peers)).

%% Given a socket whose membership the kernel has lost, though its interface looks as it did, expect
%% it to be opened anew, and nodes that start later to be found.
silent_socket(_Config) ->
    Lab = lab(3),
    A = start(Lab, 1, [{beacon_ms, 1000}]),
    wait_until(fun() -> figure(A, echoes) > 2 end, ?TIMEOUT_MS),
    ?assertMatch(#{silent_reopened := 0, send_errors := 0}, figures(A)),
    Other = lists:concat(["chlab.", os:getpid(), ".aside"]),
    %% To another namespace and back: the interface keeps its index, the socket loses its group.
    {_, [Net | _]} = chatter_lab:exec(Lab, 1),
    "--net=" ++ Path = Net,
    _ = in(Lab, 1, ["ip netns add ", Other, "\nip link set eth0 netns ", Other, "\n",
                    "ip -n ", Other, " link set eth0 netns ", filename:basename(Path), "\n",
                    "ip netns delete ", Other, "\n",
                    "ip addr add 10.77.0.1/24 dev eth0; ip link set eth0 up"]),
    Before = figure(A, echoes),
    wait_until(fun() -> figure(A, silent_reopened) + figure(A, interface_changes) > 1 end,
               ?TIMEOUT_MS),
    wait_until(fun() -> figure(A, echoes) > Before end, ?TIMEOUT_MS),
    ct:log("~p", [figures(A)]),
    B = start(Lab, 2, [{beacon_ms, 1000}]),
    await_one([A, B]).

%% Given an interface that goes down and comes up, expect the network whole again within one
%% interval of beacons.
interface_down_and_up(_Config) ->
    Lab = lab(2),
    Peers = [A, _] = [start(Lab, I) || I <- [1, 2]],
    await_one(Peers),
    _ = in(Lab, 1, "ip link set eth0 down"),
    wait_until(fun() -> on(A, fun() -> chatter:nodes() end) =:= [] end, ?TIMEOUT_MS),
    pause(3000),
    _ = in(Lab, 1, "ip link set eth0 up"),
    Up = erlang:monotonic_time(millisecond),
    await_one(Peers),
    Took = erlang:monotonic_time(millisecond) - Up,
    ct:log("whole again after ~b ms", [Took]),
    ?assert(Took < 10000).

%% Given a host that gets another address, expect its node to be found at that one.
address_changes(_Config) ->
    Lab = lab(2),
    Peers = [A, _] = [start(Lab, I, [{beacon_ms, 1000}]) || I <- [1, 2]],
    await_one(Peers),
    _ = in(Lab, 1, "ip addr flush dev eth0; ip addr add 10.77.0.201/24 dev eth0"),
    wait_until(fun() -> on(A, fun() -> chatter:nodes() end) =:= [] end, ?TIMEOUT_MS),
    await_one(Peers),
    [_ | _] = [R || R <- [maps:get(remote, L) || P <- Peers, L <- on(P, fun chatter:links/0)],
                    string:prefix(R, "10.77.0.201:") =/= nomatch],
    ok.

%% Given nodes that found each other, expect their NetIDs, and chatter_epmd to know where they
%% listen without asking the registry of the other host.
names_and_net_ids(_Config) ->
    Lab = lab(2),
    Peers = [A, B] = [start(Lab, I) || I <- [1, 2]],
    await_one(Peers),
    [IdA, IdB] = [on(P, fun() -> chatter:local_netid() end) || P <- Peers],
    {net_id, {10, 77, 0, 1}, 29999} = IdA,
    ?assertEqual([[IdB], [IdA]], [on(P, fun() -> chatter:peers() end) || P <- Peers]),
    ?assertEqual({10, 77, 0, 2}, on(B, fun() -> chatter:get_local_ip() end)),
    {ok, Known} = on(A, fun() -> chatter_epmd:lookup("n2", "10.77.0.2", 100) end),
    ?assertMatch(#{address := {10, 77, 0, 2}, chatter_port := 29999}, Known),
    ?assertEqual({error, noport}, on(A, fun() -> chatter_epmd:lookup("n9", "10.77.0.1") end)).

%% Given a neighbour by a DNS name that has a dead address and then others, expect a link as soon as
%% one of them is alive: names are resolved at each dial, and dead addresses delay nobody.
dns_names(_Config) ->
    Lab = lab(3),
    Off = [{multicast, false}],
    [A, B, C] = [chatter_lab:start(Lab, I, #{chatter => Off, links => static}) || I <- [1, 2, 3]],
    on(A, fun() ->
                  inet_db:set_lookup([file]),
                  inet_db:add_host({10, 77, 0, 99}, ["seed.test"]),
                  chatter:connect({"seed.test", 29999})
          end),
    pause(2500),
    ?assertEqual([], on(A, fun() -> chatter:neighbours() end)),
    on(A, fun() ->
                  inet_db:del_host({10, 77, 0, 99}),
                  inet_db:add_host({10, 77, 0, 2}, ["seed.test"])
          end),
    await_one([A, B]),
    %% Dead ones first, as the resolver gives them.
    {Took, ok} = on(C, fun() ->
        inet_db:set_lookup([file]),
        [inet_db:add_host({10, 77, 0, N}, ["many.test"]) || N <- [97, 98, 99, 1]],
        Start = erlang:monotonic_time(millisecond),
        ok = chatter:connect({"many.test", 29999}),
        Wait = fun Wait(0) -> never;
                   Wait(N) ->
                       case chatter:neighbours() of
                           [] -> timer:sleep(5), Wait(N - 1);
                           _ -> ok
                       end
               end,
        Result = Wait(2000),
        {erlang:monotonic_time(millisecond) - Start, Result}
    end),
    ct:log("linked after ~b ms, with three dead addresses", [Took]),
    ?assert(Took < 1200),
    await_one([A, B, C]).

%% Given twenty thousand datagrams that nobody of the cluster has made, expect them to be counted
%% or left to the kernel, nothing else, and messages to pass meanwhile. CHATTER_FORGED makes more of
%% them, and holds the round trips to the bar: `make forged` has a million.
forged_datagrams() -> [{timetrap, {minutes, 3 + forged() div 100000}}].

forged_datagrams(_Config) ->
    Lab = lab(3),
    Peers = [A, #{node := NodeB} = B] = [start(Lab, I) || I <- [1, 2]],
    await_one(Peers),
    pong = on(A, fun() -> net_adm:ping(NodeB) end),
    Stranger = chatter_lab:start(Lab, 3, #{chatter => [{multicast, false}], links => static,
                                           cookie => "another"}),
    Forged = forged(),
    _Warm = on(A, trips(NodeB, 2000)),
    %% As many round trips without and with them, in turns, since the machine drifts.
    Rounds = [begin
                  {_, Idle} = meanwhile(Stranger, A, NodeB, Forged div ?ROUNDS, quiet),
                  [?assertMatch(#{forged := 0}, figures(P)) || P <- Peers],
                  {Ms, Flooded} = meanwhile(Stranger, A, NodeB, Forged div ?ROUNDS, flood),
                  {Ms, Idle, Flooded}
              end || _ <- lists:seq(1, ?ROUNDS)],
    {Times, Idles, Floods} = lists:unzip3(Rounds),
    {P50, P99} = percentiles(lists:append(Idles)),
    {Q50, Q99} = percentiles(lists:append(Floods)),
    ct:log("~b forged datagrams in ~b ms; round trips p50, p99 in us: ~p without, ~p with them; "
           "p99 ~.2f times~nby rounds: ~p",
           [Forged, lists:sum(Times), {P50, P99}, {Q50, Q99}, Q99 / P99,
            [{percentiles(Idle), percentiles(Flooded)} || {_, Idle, Flooded} <- Rounds]]),
    ?assert(os:getenv("CHATTER_FORGED") =:= false orelse Q99 =< 2 * P99),
    wait_until(fun() -> #{malformed := M, foreign := F} = figures(A), M > 100 andalso F > 100 end,
               ?TIMEOUT_MS),
    ct:log("~p, ~b arrived", [figures(A), arrived(Lab, 1)]),
    ?assert(arrived(Lab, 1) >= Forged div 2),
    %% Ever fewer of a flood are read.
    #{malformed := Malformed, foreign := Foreign} = figures(A),
    ?assert(Malformed + Foreign =< max(50000, Forged * 15 div 100)),
    [?assertMatch(#{nodes := 1, found := 1, forged := 0}, figures(P)) || P <- [A, B]],
    ?assertEqual([NodeB], on(A, fun() -> nodes() end)).

%% Datagrams that the kernel of node I has delivered, or dropped since nobody has read them.
arrived(Lab, I) ->
    Lines = in(Lab, I, "grep Udp: /proc/net/snmp"),
    [_Names, Numbers] = string:lexemes(unicode:characters_to_list(Lines), "\n"),
    ["Udp:", Delivered, _NoPorts, Dropped | _] = string:lexemes(Numbers, " "),
    list_to_integer(Delivered) + list_to_integer(Dropped).

forged() -> list_to_integer(os:getenv("CHATTER_FORGED", "20000")).

%% How long it took the stranger to send, or to do as if, and round trips as long as it did, in
%% microseconds.
meanwhile(Stranger, A, NodeB, Count, What) ->
    {Pid, Ref} = spawn_monitor(fun() ->
                                       Flood = fun() -> flood(Count, What) end,
                                       exit(chatter_work:on(Stranger, Flood, 60000 + Count))
                               end),
    Trips = round_trips(A, NodeB, Ref, []),
    receive {'DOWN', Ref, process, Pid, {sent, Ms}} -> {Ms, Trips} end.

round_trips(A, NodeB, Ref, Trips) ->
    More = on(A, trips(NodeB, 200)),
    {messages, Messages} = process_info(self(), messages),
    case lists:any(fun(M) -> element(1, M) =:= 'DOWN' andalso element(2, M) =:= Ref end,
                   Messages) of
        true -> More ++ Trips;
        false -> round_trips(A, NodeB, Ref, More ++ Trips)
    end.

trips(NodeB, Count) ->
    fun() ->
            [element(1, timer:tc(fun() -> erpc:call(NodeB, erlang, node, []) end))
             || _ <- lists:seq(1, Count)]
    end.

%% 50th and 99th.
percentiles(Times) ->
    Sorted = lists:sort(Times),
    At = fun(Percent) -> lists:nth(max(1, length(Sorted) * Percent div 100), Sorted) end,
    {At(50), At(99)}.

%% Sends datagrams of 1,400 bytes, some 1 Gbit/s of them, with a right beginning and none in turns.
%% The kernel cuts what is given to it (UDP_SEGMENT of udp(7)), so that this program is no
%% load by itself: it shares processors with those whom it floods, which others would not.
flood(Count, What) ->
    {ok, Socket} = gen_udp:open(0, [binary, {multicast_if, {10, 77, 0, 3}}, {multicast_ttl, 1},
                                    {sndbuf, 1 bsl 20},
                                    {raw, 17, 103, <<?DATAGRAM:32/native>>}]),
    Good = <<"CHTD", 1, 0, 0, 0, (rand:bytes(32))/binary, (rand:bytes(?DATAGRAM - 40))/binary>>,
    Bad = rand:bytes(?DATAGRAM),
    Burst = binary:copy(<<Good/binary, Bad/binary>>, ?BURST div 2),
    Start = erlang:monotonic_time(millisecond),
    ok = flood(Socket, Burst, Count, What, Start, 0),
    ok = gen_udp:close(Socket),
    {sent, erlang:monotonic_time(millisecond) - Start}.

flood(_, _, Count, _, _, Sent) when Sent >= Count -> ok;
flood(Socket, Burst, Count, What, Start, Sent) ->
    case (erlang:monotonic_time(millisecond) - Start) * ?PER_MS >= Sent of
        true ->
            ok = case What of
                     flood -> gen_udp:send(Socket, {224, 1, 1, 1}, ?MULTICAST_PORT, Burst);
                     quiet -> ok
                 end,
            flood(Socket, Burst, Count, What, Start, Sent + ?BURST);
        false ->
            pause(1),
            flood(Socket, Burst, Count, What, Start, Sent)
    end.

%% Given sixteen nodes, expect one network soon after the last has booted, about two links for each,
%% and at most ten beacons a second on the segment afterwards.
sixteen_at_once(_Config) ->
    Lab = lab(16),
    Self = self(),
    Leader = group_leader(),
    _ = [spawn_link(fun() ->
                            group_leader(Leader, self()),
                            Self ! {started, I, start(Lab, I)},
                            receive stop -> ok end
                    end) || I <- lists:seq(1, 16)],
    Peers = [receive {started, I, Peer} -> Peer end || I <- lists:seq(1, 16)],
    Booted = erlang:monotonic_time(millisecond),
    await_one(Peers),
    Took = erlang:monotonic_time(millisecond) - Booted,
    Links = links(Peers),
    ct:log("16 nodes: one network ~b ms after the last has booted, ~b links", [Took, Links]),
    ?assert(Took =< 3000),
    ?assert(Links =< 40),
    pause(30000),
    Before = lists:sum([figure(P, beacons_out) || P <- Peers]),
    pause(10000),
    Beacons = lists:sum([figure(P, beacons_out) || P <- Peers]) - Before,
    ct:log("~b beacons in ten seconds, half a minute later", [Beacons]),
    ?assert(Beacons =< 100).
