%% SPDX-License-Identifier: Apache-2.0
%%
%% The epmd of Chatter and those who use it: the real clients, nodes that boot with it, and where it
%% listens.
-module(chatter_epmd_nodes_SUITE).
-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).
-import(chatter_epmd_lab, [wait_until/1, free_port/0, names/1, alive2/2, alive2/3, alive/2,
                           refused/1, epmd/2, listing/2, is_serving/1]).

suite() -> [{timetrap, {seconds, 180}}].

all() -> [{group, G} || {G, _, _} <- groups()].

groups() ->
    [{clients, [], [epmd_program, erl_call_program, stock_nodes, at_a_stock_epmd]},
     {nodes, [], [two_nodes, callbacks_as_erl_epmd, second_start_is_ignored, hidden_lookup,
                  many_at_once, started_by_carrier, started_at_run_time, embedded_boot,
                  both_carriers, extra_round_trip, duplicate_name, dead_client,
                  agent_and_registry_die, port_is_squatted, erl_epmd_port]},
     {addresses, [], [ipv6, address_list, bad_addresses]}].

init_per_testcase(_Case, Config) -> [{epmd, free_port()} | Config].

end_per_testcase(_Case, _Config) -> ok.

%%% Real clients -------------------------------------------------------------------------

epmd_program(Config) ->
    %% Given a registry with a name, expect the program epmd to list it, and not to kill it.
    Port = ?config(epmd, Config),
    _ = chatter_epmd_lab:registry(Port),
    {0, _, Socket} = alive(Port, alive2(<<"somebody">>, 4711)),
    ?assertEqual({0, listing(Port, "name somebody at port 4711\n")}, epmd(Port, ["-names"])),
    {0, Dump} = epmd(Port, ["-dump"]),
    ?assertMatch({match, _}, re:run(Dump, "active name     <somebody> at port 4711, fd = \\d+\n")),
    ?assertEqual({1, <<"Killing not allowed - living nodes in database.\n">>},
                 epmd(Port, ["-kill"])),
    {1, _} = epmd(Port, ["-stop", "somebody"]),
    gen_tcp:close(Socket),
    wait_until(fun() -> names(Port) =:= [] end),
    ?assertEqual({0, <<"Killed\n">>}, epmd(Port, ["-kill"])),
    ?assert(receive {chatter_epmd_registry, _, killed} -> true after 5000 -> false end).

erl_call_program(Config) ->
    %% Given a stock node and one with chatter_epmd at our registry, expect erl_call to reach both.
    Port = ?config(epmd, Config),
    Peers = [chatter_epmd_lab:node(ours, Port, []), chatter_epmd_lab:stock(stock, Port, [])],
    [?assertEqual({0, list_to_binary(atom_to_list(chatter_epmd_lab:name_of(P)))},
                  erl_call(Port, Name))
     || {Name, P} <- lists:zip(["ours@localhost", "stock@localhost"], Peers)],
    chatter_epmd_lab:stop(Peers).

stock_nodes(Config) ->
    %% Given two nodes with erl_epmd at our registry, expect them to register and to connect.
    Port = ?config(epmd, Config),
    _ = chatter_epmd_lab:registry(Port),
    [{A, _}, {B, _} = PeerB] = Peers = [chatter_epmd_lab:stock(N, Port, []) || N <- [a, b]],
    ?assertMatch([{<<"a">>, _}, {<<"b">>, _}], names(Port)),
    ?assertEqual(pong, peer:call(A, net_adm, ping, [chatter_epmd_lab:name_of(PeerB)])),
    ?assertMatch({ok, [{"a", _}, {"b", _}]}, peer:call(B, net_adm, names, [])),
    ?assert(peer:call(A, erlang, system_info, [creation]) >= 4),
    chatter_epmd_lab:stop(Peers),
    wait_until(fun() -> names(Port) =:= [] end).

at_a_stock_epmd(Config) ->
    %% Given an epmd that is there already, expect our nodes to register there and to connect.
    Port = ?config(epmd, Config),
    _ = chatter_epmd_lab:start_epmd(Port),
    [{A, _}, {B, _} = PeerB] = Peers = [chatter_epmd_lab:node(N, Port, []) || N <- [a, b]],
    {0, Listing} = epmd(Port, ["-names"]),
    ?assertMatch({match, _}, re:run(Listing, "name a at port [0-9]+\n")),
    ?assertMatch({match, _}, re:run(Listing, "name b at port [0-9]+\n")),
    ?assertEqual(pong, peer:call(A, net_adm, ping, [chatter_epmd_lab:name_of(PeerB)])),
    ?assertMatch(#{registry := #{serving := false}}, peer:call(B, chatter_epmd, info, [])),
    {ok, Creation} = peer:call(A, chatter_epmd, register_node, ["a", 29999, chatter]),
    ?assertMatch({ok, #{chatter_port := 29999}},
                 wait_until(fun() -> ok_or_false(peer:call(B, chatter_epmd, lookup,
                                                           [a, "localhost"])) end)),
    ?assertEqual(Creation, peer:call(A, erlang, system_info, [creation])),
    chatter_epmd_lab:stop(Peers).

erl_call(Port, Node) ->
    chatter_epmd_lab:run(erl_call_path(), ["-sname", Node, "-c", "chatter", "-a", "erlang node"],
                         [{"ERL_EPMD_PORT", integer_to_list(Port)}]).

erl_call_path() ->
    [Path | _] = [P || P <- [os:find_executable("erl_call"),
                             filename:join([code:lib_dir(erl_interface), "bin", "erl_call"])],
                       is_list(P), filelib:is_regular(P)],
    Path.

%%% Nodes --------------------------------------------------------------------------------

two_nodes(Config) ->
    %% Given two nodes with -epmd_module chatter_epmd and no daemon, expect what epmd gives.
    Port = ?config(epmd, Config),
    [{A, _} = PeerA, {B, _} = PeerB] = Peers =
        [chatter_epmd_lab:node(N, Port, []) || N <- [a, b]],
    ?assertEqual(pong, peer:call(A, net_adm, ping, [chatter_epmd_lab:name_of(PeerB)])),
    ?assertEqual([chatter_epmd_lab:name_of(PeerA)], peer:call(B, erlang, nodes, [])),
    ?assertMatch({ok, [{"a", _}, {"b", _}]}, peer:call(B, net_adm, names, [])),
    ?assertMatch({ok, [_, _]}, peer:call(B, net_adm, names, [localhost])),
    ?assertMatch(#{registry := #{serving := true}}, peer:call(A, chatter_epmd, info, [])),
    ?assertMatch(#{registry := #{serving := false}}, peer:call(B, chatter_epmd, info, [])),
    Creations = [peer:call(P, erlang, system_info, [creation]) || P <- [A, B]],
    ?assertEqual(2, length(lists:usort([C || C <- Creations, C >= 4]))),
    chatter_epmd_lab:stop(Peers).

callbacks_as_erl_epmd(Config) ->
    %% Given one host with names, one without a registry, and one that is none, expect the
    %% callbacks to answer as those of erl_epmd do.
    Port = ?config(epmd, Config),
    {A, _} = Peer = chatter_epmd_lab:node(a, Port, []),
    [?assertEqual(peer:call(A, erl_epmd, F, Args), peer:call(A, chatter_epmd, F, Args), {F, Args})
     || {F, Args} <- [{port_please, [a, "localhost"]}, {port_please, ["a", {127, 0, 0, 1}, 1000]},
                      {port_please, ["nobody", "localhost"]}, {port_please, [a, '127.0.0.1']},
                      {port_please, [a, "no.such.host.invalid"]},
                      {port_please, [a, {127, 0, 0, 1}, infinity]},
                      {names, []}, {names, ["localhost"]}, {names, [{127, 0, 0, 1}]},
                      {names, [localhost]}, {listen_port_please, [a, "localhost"]},
                      {address_please, ["a", "localhost", inet]},
                      {address_please, ["a", "no.such.host.invalid", inet]}]],
    ?assertEqual({error, noport}, peer:call(A, chatter_epmd, lookup, [b, localhost])),
    ?assertEqual({error, nxdomain}, peer:call(A, chatter_epmd, lookup, [b, "no.such.invalid"])),
    chatter_epmd_lab:stop(Peer).

many_at_once(Config) ->
    %% Given eight nodes that boot together on an empty host, expect all registered, one serving.
    Port = ?config(epmd, Config),
    Case = self(),
    Names = [a, b, c, d, e, f, g, h],
    Starters = [spawn_monitor(fun() -> Case ! {node, chatter_epmd_lab:node(N, Port, [])},
                                       receive stop -> ok end
                              end) || N <- Names],
    Peers = [receive {node, Peer} -> Peer after 30000 -> error(no_node) end || _ <- Names],
    ?assertEqual([atom_to_binary(N) || N <- Names], [N || {N, _} <- names(Port)]),
    ?assertEqual(1, length([P || P <- Peers, is_serving(P)])),
    chatter_epmd_lab:stop(Peers),
    [Pid ! stop || {Pid, _} <- Starters].

started_by_carrier(Config) ->
    %% Given a carrier that starts the registry side itself, expect a node with `-no_epmd' to be
    %% registered, and one without to start it once.
    Port = ?config(epmd, Config),
    Flags = ["-proto_dist", "chatter_epmd_test"],
    [{A, _} = PeerA, {B, _} = PeerB] =
        [chatter_epmd_lab:node(a, Port, ["-no_epmd" | Flags]),
         chatter_epmd_lab:node(b, Port, Flags)],
    ?assertMatch([{<<"a">>, _}, {<<"b">>, _}], names(Port)),
    ?assertEqual(pong, peer:call(A, net_adm, ping, [chatter_epmd_lab:name_of(PeerB)])),
    ?assertEqual(pong, peer:call(B, net_adm, ping, [chatter_epmd_lab:name_of(PeerA)])),
    chatter_epmd_lab:stop([PeerA, PeerB]).

started_at_run_time(Config) ->
    %% Given a VM that starts and stops its distribution, expect its name to come and go, each time
    %% with the next creation.
    Port = ?config(epmd, Config),
    _ = chatter_epmd_lab:registry(Port),
    {A, _} = Peer = chatter_epmd_lab:unnamed(Port, ["-epmd_module", "chatter_epmd"]),
    Lives = [begin
                 {ok, _} = peer:call(A, net_kernel, start, [[a@localhost, shortnames]]),
                 ?assertMatch([{<<"a">>, _}], names(Port)),
                 Creation = peer:call(A, erlang, system_info, [creation]),
                 ok = peer:call(A, net_kernel, stop, []),
                 wait_until(fun() -> names(Port) =:= [] end),
                 Creation
             end || _ <- [1, 2, 3]],
    [First | _] = Lives,
    ?assertEqual([First, First + 1, First + 2], Lives),
    chatter_epmd_lab:stop(Peer).

embedded_boot(Config) ->
    %% Given a boot script with all modules, and embedded mode, expect the callbacks to be there
    %% when the distribution starts: before any application, without files.
    Port = ?config(epmd, Config),
    Boot = make_boot(?config(priv_dir, Config)),
    Flags = ["-boot", Boot, "-mode", "embedded"],
    [{A, _}, PeerB] = Peers = [chatter_epmd_lab:node(N, Port, Flags) || N <- [a, b]],
    ?assertMatch([{<<"a">>, _}, {<<"b">>, _}], names(Port)),
    ?assertEqual(embedded, peer:call(A, code, get_mode, [])),
    ?assertEqual(pong, peer:call(A, net_adm, ping, [chatter_epmd_lab:name_of(PeerB)])),
    chatter_epmd_lab:stop(Peers).

%% The boot script of a release with kernel, stdlib and the modules of chatter_epmd.
make_boot(Dir) ->
    Ebin = filename:join([Dir, "epmd_release-1", "ebin"]),
    ok = filelib:ensure_dir(filename:join(Ebin, "x")),
    Beams = filelib:wildcard(filename:join(chatter_epmd_lab:code_path(), "chatter_epmd*.beam")),
    [{ok, _} = file:copy(Beam, filename:join(Ebin, filename:basename(Beam))) || Beam <- Beams],
    Modules = [list_to_atom(filename:basename(Beam, ".beam")) || Beam <- Beams],
    write_term(filename:join(Ebin, "epmd_release.app"),
               {application, epmd_release, [{description, ""}, {vsn, "1"}, {modules, Modules},
                                            {registered, []}, {applications, [kernel, stdlib]}]}),
    Versions = [begin
                    _ = application:load(App),
                    {ok, Vsn} = application:get_key(App, vsn),
                    {App, Vsn}
                end || App <- [kernel, stdlib]],
    Boot = filename:join(Dir, "epmd_release"),
    write_term(Boot ++ ".rel", {release, {"epmd_release", "1"},
                                {erts, erlang:system_info(version)},
                                Versions ++ [{epmd_release, "1", load}]}),
    ok = systools:make_script(Boot, [{path, [Ebin]}, {outdir, Dir}, no_warn_sasl]),
    Boot.

write_term(File, Term) -> ok = file:write_file(File, io_lib:format("~p.~n", [Term])).

second_start_is_ignored(Config) ->
    %% Given a node where the carrier's child specifications have started the registry side
    %% already, expect start_link to say `ignore'.
    {A, _} = Peer = chatter_epmd_lab:node(a, ?config(epmd, Config), []),
    ?assertEqual(ignore, peer:call(A, chatter_epmd, start_link, [])),
    chatter_epmd_lab:stop(Peer).

hidden_lookup(Config) ->
    %% Given a node that does not listen, expect it to find others and never to serve.
    Port = ?config(epmd, Config),
    {C, _} = Quiet = chatter_epmd_lab:node(c, Port, ["-dist_listen", "false"]),
    ?assertEqual({error, unreachable}, peer:call(C, chatter_epmd, lookup, [a, "localhost"])),
    A = chatter_epmd_lab:node(a, Port, []),
    ?assertMatch({ok, _}, peer:call(C, chatter_epmd, lookup, [a, "localhost"])),
    ?assertEqual(pong, peer:call(C, net_adm, ping, [chatter_epmd_lab:name_of(A)])),
    ?assertMatch(#{registry := #{serving := false}}, peer:call(C, chatter_epmd, info, [])),
    chatter_epmd_lab:stop([A, Quiet]).

both_carriers(Config) ->
    %% Given listeners of a stock carrier and of Chatter in one node, in either order, expect one
    %% name with one creation, the stock port, and Chatter's port in the extra.
    Port = ?config(epmd, Config),
    {A, _} = Peer = chatter_epmd_lab:node(a, Port, ["-dist_listen", "false"]),
    Register = fun(Name, P, Kind) -> peer:call(A, chatter_epmd, register_node, [Name, P, Kind]) end,
    {ok, C} = Register("a", 29999, chatter),
    {ok, C} = Register("a", 29999, chatter),
    ?assertMatch({ok, #{port := 29999, chatter_port := 29999, version := 6}}, lookup(A)),
    {ok, C} = Register(a, 4711, inet_tcp),
    ?assertMatch({ok, #{port := 4711, chatter_port := 29999, address := {127, 0, 0, 1}}},
                 lookup(A)),
    ?assertEqual({error, already_registered}, Register("a", 4712, inet6_tcp)),
    ?assertEqual({error, already_registered}, Register("other", 4711, inet)),
    ?assertEqual([{<<"a">>, 4711}], names(Port)),
    {B, _} = PeerB = chatter_epmd_lab:node(b, Port, []),
    {ok, BPort} = port_of(names(Port), <<"b">>),
    {ok, CB} = peer:call(B, chatter_epmd, register_node, [b, 29998, chatter]),
    ?assertEqual(CB, peer:call(B, erlang, system_info, [creation])),
    ?assertMatch({ok, #{port := BPort, chatter_port := 29998}},
                 peer:call(A, chatter_epmd, lookup, ["b", "localhost"])),
    ?assertEqual({port, BPort, 6}, peer:call(A, erl_epmd, port_please, [b, "localhost"])),
    chatter_epmd_lab:stop([Peer, PeerB]).

extra_round_trip(Config) ->
    %% Given an extra of any bytes, up to the limit, expect it back as it was.
    Port = ?config(epmd, Config),
    _ = chatter_epmd_lab:registry(Port),
    [begin
         Name = integer_to_binary(byte_size(Extra)),
         {0, _, _} = alive(Port, alive2(Name, 1, #{extra => Extra})),
         ?assertMatch({ok, #{extra := Extra}},
                      chatter_epmd_client:port({127, 0, 0, 1}, Port, Name, 1000))
     end || Extra <- [<<>>, <<0>>, <<"chatter:29999">>, binary:copy(<<255, 0>>, 510)]].

duplicate_name(Config) ->
    %% Given a node, expect another of its name to be refused and not to boot, and the first to
    %% keep the name.
    Port = ?config(epmd, Config),
    Peer = chatter_epmd_lab:node(a, Port, []),
    Before = names(Port),
    {Status, Output} =
        chatter_epmd_lab:run("erl", ["-noinput", "-epmd_module", "chatter_epmd", "-start_epmd",
                                     "false", "-sname", "a@localhost", "-pa",
                                     chatter_epmd_lab:code_path()],
                             [{"ERL_EPMD_PORT", integer_to_list(Port)}]),
    ?assertEqual(1, Status),
    ?assertMatch({match, _}, re:run(Output, "seems to be in use by another Erlang node")),
    ?assertEqual(Before, names(Port)),
    chatter_epmd_lab:stop(Peer).

dead_client(Config) ->
    %% Given nodes that are killed, expect their names gone at once.
    Port = ?config(epmd, Config),
    _ = chatter_epmd_lab:registry(Port),
    {_, OsPid} = chatter_epmd_lab:node(a, Port, []),
    ?assertMatch([{<<"a">>, _}], names(Port)),
    {Ms, _} = chatter_epmd_lab:ms(fun() -> chatter_epmd_lab:kill(OsPid),
                                           wait_until(fun() -> names(Port) =:= [] end) end),
    ct:pal("the name was gone after ~b ms", [Ms]),
    ?assert(Ms < 500).

agent_and_registry_die(Config) ->
    %% Given a node whose agent, then whose registry, is killed, expect the node to live and all
    %% names to come back.
    Port = ?config(epmd, Config),
    [{A, _}, {_, _}] = Peers = [chatter_epmd_lab:node(N, Port, []) || N <- [a, b]],
    Before = names(Port),
    Creation = peer:call(A, erlang, system_info, [creation]),
    [begin
         Pid = peer:call(A, erlang, whereis, [Process]),
         peer:call(A, erlang, exit, [Pid, kill]),
         wait_until(fun() -> peer:call(A, erlang, whereis, [Process]) =/= Pid end),
         wait_until(fun() -> names(Port) =:= Before end)
     end || Process <- [chatter_epmd_agent, chatter_epmd_registry, chatter_epmd_agent]],
    wait_until(fun() -> #{creation := C} = peer:call(A, chatter_epmd_agent, info, []),
                        C =:= Creation end),
    chatter_epmd_lab:stop(Peers).

port_is_squatted(Config) ->
    %% Given something at the port that is no epmd, expect a stock carrier to be refused, Chatter
    %% to get its creation and to live, and its name to be there once the port is free.
    Port = ?config(epmd, Config),
    {ok, Listen} = gen_tcp:listen(Port, [{ip, {0, 0, 0, 0}}, {reuseaddr, true}, {active, false}]),
    spawn_link(fun() -> answer_garbage(Listen) end),
    {A, _} = Peer = chatter_epmd_lab:node(a, Port, ["-dist_listen", "false"]),
    ?assertMatch({error, {not_epmd, _}}, peer:call(A, chatter_epmd, register_node, ["a", 1])),
    {ok, Creation} = peer:call(A, chatter_epmd, register_node, ["a", 29999, chatter]),
    ?assert(Creation >= 4),
    ?assertMatch(#{agent := #{registered := false, failure := {not_epmd, _}}},
                 peer:call(A, chatter_epmd, info, [])),
    gen_tcp:close(Listen),
    wait_until(fun() -> names(Port) =:= [{<<"a">>, 29999}] end),
    ?assertMatch(#{agent := #{registered := true, creation := Creation, failure := undefined}},
                 peer:call(A, chatter_epmd, info, [])),
    chatter_epmd_lab:stop(Peer).

erl_epmd_port(Config) ->
    %% Given nodes with a fixed port for all, expect no registry to be asked, and -1 if none is
    %% there to register with.
    Port = ?config(epmd, Config),
    {ok, Listen} = gen_tcp:listen(Port, [{ip, {0, 0, 0, 0}}, {reuseaddr, true}, {active, false}]),
    spawn_link(fun() -> answer_garbage(Listen) end),
    {A, _} = Peer = chatter_epmd_lab:node(a, Port, ["-dist_listen", "false",
                                                    "-erl_epmd_port", "4711"]),
    ?assertEqual({ok, 4711}, peer:call(A, chatter_epmd, listen_port_please, [b, "localhost"])),
    %% erl_epmd says version 5 here, and 25.2 does not get on with that (GH-6595).
    ?assertEqual({port, 4711, 6}, peer:call(A, chatter_epmd, port_please, [b, "localhost"])),
    ?assertEqual({ok, -1}, peer:call(A, chatter_epmd, register_node, ["a", 4711, inet_tcp])),
    gen_tcp:close(Listen),
    chatter_epmd_lab:stop(Peer).

answer_garbage(Listen) ->
    case gen_tcp:accept(Listen) of
        {ok, Socket} ->
            gen_tcp:send(Socket, "220 mail.example.com ESMTP\r\n"),
            gen_tcp:close(Socket),
            answer_garbage(Listen);
        {error, closed} -> ok
    end.

lookup(Peer) -> peer:call(Peer, chatter_epmd, lookup, ["a", "localhost"]).

port_of(Names, Name) ->
    {Name, Port} = lists:keyfind(Name, 1, Names),
    {ok, Port}.

ok_or_false({ok, _} = Ok) -> Ok;
ok_or_false(_) -> false.

%%% Addresses ----------------------------------------------------------------------------

ipv6(Config) ->
    %% Given a host with IPv6, expect all to work over it.
    Port = ?config(epmd, Config),
    Loopback = {0, 0, 0, 0, 0, 0, 0, 1},
    case gen_tcp:listen(0, [inet6, {ip, Loopback}]) of
        {error, _} -> {skip, "no IPv6 here"};
        {ok, Probe} ->
            gen_tcp:close(Probe),
            {A, _} = Peer = chatter_epmd_lab:node(a, Port, []),
            {0, _, _} = chatter_epmd_lab:alive(Loopback, Port, alive2(<<"six">>, 6)),
            ?assertMatch({ok, Port, [{<<"six">>, 6}, {<<"a">>, _}]},
                         chatter_epmd_client:names(Loopback, Port, 1000)),
            ?assertMatch({ok, #{port := 6, address := Loopback}},
                         peer:call(A, chatter_epmd, lookup, ["six", Loopback])),
            ?assertEqual(peer:call(A, erl_epmd, port_please, [six, Loopback]),
                         peer:call(A, chatter_epmd, port_please, [six, Loopback])),
            chatter_epmd_lab:stop(Peer)
    end.

address_list(Config) ->
    %% Given ERL_EPMD_ADDRESS, expect those addresses and the loopback ones, and no other.
    Port = ?config(epmd, Config),
    Other = chatter_epmd_lab:non_loopback(),
    Loop = chatter_epmd_lab:node(a, Port, [], [{"ERL_EPMD_ADDRESS", "127.0.0.2, ::1"}]),
    [?assertMatch({ok, _, _}, chatter_epmd_client:names(Addr, Port, 1000))
     || Addr <- [{127, 0, 0, 1}, {127, 0, 0, 2}]],
    ?assertEqual({error, unreachable}, chatter_epmd_client:names(Other, Port, 1000)),
    chatter_epmd_lab:stop(Loop),
    Wide = chatter_epmd_lab:node(a, Port, [], [{"ERL_EPMD_ADDRESS", inet:ntoa(Other)}]),
    [?assertMatch({ok, _, _}, chatter_epmd_client:names(Addr, Port, 1000))
     || Addr <- [{127, 0, 0, 1}, Other]],
    chatter_epmd_lab:stop(Wide).

bad_addresses(Config) ->
    %% Given addresses that are none, or not of this host, or too many, expect an error that says
    %% so and nothing bound.
    Port = ?config(epmd, Config),
    {ok, Registry} = chatter_epmd_registry:start_link(anonymous),
    _ = chatter_epmd_lab:at_end(fun() -> exit(Registry, kill) end),
    unlink(Registry),
    Serve = fun(Text) ->
                    Options = chatter_epmd_config:options(#{port => Port, addresses => Text}),
                    chatter_epmd_registry:serve(Registry, Options)
            end,
    ?assertEqual({error, {bad_address, "nonsense"}}, Serve("127.0.0.2,nonsense")),
    ?assertEqual({error, eaddrnotavail}, Serve("192.0.2.1")),
    Many = lists:join(",", ["127.0.1." ++ integer_to_list(N) || N <- lists:seq(1, 20)]),
    ?assertEqual({error, too_many_addresses}, Serve(lists:append(Many))),
    ?assert(refused(Port)),
    ?assertEqual(ok, Serve(" , ")),
    ?assertEqual({error, already_serving}, Serve("")),
    ?assertEqual(ok, chatter_epmd_registry:stop_serving(Registry)),
    ?assert(refused(Port)).
