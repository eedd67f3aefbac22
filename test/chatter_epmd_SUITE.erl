%% SPDX-License-Identifier: Apache-2.0
%%
%% The epmd of Chatter: its bytes, its answers beside those of the real epmd, the real clients,
%% nodes that boot with it, takeovers, hostile peers, and the stand-alone program.
-module(chatter_epmd_SUITE).
-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).
-import(chatter_epmd_lab, [wait_until/1, wait_until/2, free_port/0, names/1, frame/1,
                           alive2/2, alive2/3, alive/2, exchange/2, exchange/3, request/2]).

suite() -> [{timetrap, {seconds, 180}}].

all() -> [{group, G} || {G, _, _} <- groups()].

groups() ->
    [{wire, [parallel], [golden_bytes, truncated_bytes, mutated_bytes, extra_words, creations,
                         old_names_are_bounded]},
     {differential, [], [same_answers, same_answers_relaxed, same_answers_to_fragments,
                         same_answers_to_mutants, same_order_of_names]},
     {clients, [], [epmd_program, erl_call_program, stock_nodes, at_a_stock_epmd]},
     {nodes, [], [two_nodes, callbacks_as_erl_epmd, second_start_is_ignored, hidden_lookup,
                  many_at_once, started_by_carrier, started_at_run_time, embedded_boot,
                  both_carriers, extra_round_trip, duplicate_name, dead_client,
                  agent_and_registry_die, port_is_squatted, erl_epmd_port]},
     {takeover, [], [server_is_killed, stock_epmd_is_killed, creation_goes_on,
                     many_takeovers, stock_node_comes_back, kill_request]},
     {hostile, [], [idle_connections, slow_drip, oversize, out_of_descriptors, too_many_pending,
                    too_many_names, other_hosts_only_ask, chatty_registrant]},
     {addresses, [], [ipv6, address_list, bad_addresses]},
     {program, [parallel], [main_serves, main_behind_extra, main_port_taken, main_bad_arguments,
                            main_commands]}].

init_per_testcase(_Case, Config) -> [{epmd, free_port()} | Config].

end_per_testcase(_Case, _Config) -> ok.

%%% Wire ---------------------------------------------------------------------------------

golden_bytes(_) ->
    %% Given the bytes of the protocol's document, expect them read, and written, exactly.
    Entry = #{name => <<"abc">>, port => 16#1234, node_type => 77, protocol => 0, high => 6,
              low => 5, extra => <<"x">>},
    Alive = <<0, 17, 120, 16#12, 16#34, 77, 0, 0, 6, 0, 5, 0, 3, "abc", 0, 1, "x">>,
    ?assertEqual(Alive, iolist_to_binary(chatter_epmd_wire:alive2_request(Entry))),
    ?assertEqual({ok, {alive2, Entry}}, decode(Alive)),
    Port2Req = <<0, 4, 122, "abc">>,
    ?assertEqual(Port2Req, iolist_to_binary(chatter_epmd_wire:port2_request(<<"abc">>))),
    ?assertEqual({ok, {port2, <<"abc">>}}, decode(Port2Req)),
    ?assertEqual({ok, {port2, <<"abc">>}}, decode(<<0, 5, 122, "abc", 0>>)),
    ?assertEqual({ok, {stop, <<"abc">>}}, decode(<<0, 4, 115, "abc">>)),
    [?assertEqual({ok, Tag}, decode(iolist_to_binary(chatter_epmd_wire:simple_request(Tag))))
     || Tag <- [names, dump, kill]],
    Port2 = <<119, 0, 16#12, 16#34, 77, 0, 0, 6, 0, 5, 0, 3, "abc", 0, 1, "x">>,
    ?assertEqual(Port2, iolist_to_binary(chatter_epmd_wire:port2_response(Entry))),
    ?assertEqual({ok, Entry}, chatter_epmd_wire:decode_port2_response(Port2)),
    ?assertEqual(<<119, 1>>, chatter_epmd_wire:port2_response(none)),
    ?assertEqual(<<118, 0, 16#01020304:32>>, chatter_epmd_wire:alive2_response(6, 16#01020304)),
    ?assertEqual(<<121, 0, 2:16>>, chatter_epmd_wire:alive2_response(5, 4)),
    ?assertEqual(<<118, 1, 99:32>>, chatter_epmd_wire:alive2_refusal(6)),
    ?assertEqual(<<121, 1, 99:16>>, chatter_epmd_wire:alive2_refusal(5)),
    ?assertEqual(<<4369:32, "name a at port 1\n">>,
                 iolist_to_binary(chatter_epmd_wire:names_response(4369, [{<<"a">>, 1}]))).

truncated_bytes(_) ->
    %% Given every prefix of each request and answer, expect an error or a wish for more.
    Alive = alive2(<<"abc">>, 1, #{extra => <<"extra">>}),
    <<_:16, Body/binary>> = Alive,
    [?assertMatch({error, _}, chatter_epmd_wire:decode_request(binary:part(Body, 0, N)))
     || N <- lists:seq(0, byte_size(Body) - 1)],
    Port2 = <<119, 0, 1:16, 77, 0, 6:16, 5:16, 3:16, "abc", 1:16, "x">>,
    [?assertEqual(more, chatter_epmd_wire:decode_port2_response(binary:part(Port2, 0, N)))
     || N <- lists:seq(0, byte_size(Port2) - 1)],
    [?assertEqual(more, chatter_epmd_wire:decode_alive2_response(binary:part(R, 0, N)))
     || R <- [<<118, 0, 7:32>>, <<121, 0, 1:16>>], N <- lists:seq(0, byte_size(R) - 1)].

mutated_bytes(_) ->
    %% Given random bytes and mutated requests, expect every decoder to answer, never to crash.
    rand:seed(exsss, seed()),
    [begin
         Bytes = mutate(alive2(<<"some_name">>, 4711, #{extra => <<"chatter:1,creation:77">>})),
         _ = chatter_epmd_wire:request_length(Bytes),
         _ = decode(Bytes),
         _ = chatter_epmd_wire:decode_alive2_response(Bytes),
         _ = chatter_epmd_wire:decode_port2_response(Bytes),
         _ = chatter_epmd_wire:decode_names_response(Bytes),
         #{} = chatter_epmd_wire:decode_extra(Bytes)
     end || _ <- lists:seq(1, 20000)].

extra_words(_) ->
    %% Given what Chatter says in an extra, and what others might, expect only sense to be read.
    Read = fun chatter_epmd_wire:decode_extra/1,
    ?assertEqual(<<"chatter:29999">>, chatter_epmd_wire:encode_extra(#{chatter_port => 29999})),
    ?assertEqual(<<>>, chatter_epmd_wire:encode_extra(#{})),
    Both = #{chatter_port => 29999, creation => 4},
    ?assertEqual(Both, Read(chatter_epmd_wire:encode_extra(Both))),
    ?assertEqual(#{chatter_port => 5}, Read(<<"other,chatter:5,more:1">>)),
    [?assertEqual(#{}, Read(Bad)) || Bad <- [<<>>, <<"chatter">>, <<"chatter:">>, <<"chatter:0">>,
                                             <<"chatter:65536">>, <<"chatter:-1">>,
                                             <<"creation:3">>, <<"creation:4294967296">>,
                                             <<"creation:99999999999999999999">>, <<0, 1, 255>>]].

creations(_) ->
    %% Given one name with several lives, expect a new creation each time, never below 4.
    Register = fun(Extra, Random, T) ->
                       Entry = #{name => <<"a">>, port => 1, node_type => 77, protocol => 0,
                                 high => 6, low => 6, extra => Extra},
                       {ok, C, T1} = chatter_epmd_names:register(Entry, {self(), 1}, Random, T),
                       {C, chatter_epmd_names:unregister(self(), T1)}
               end,
    T0 = chatter_epmd_names:new(10, 10),
    {16#fffffffe, T1} = Register(<<>>, 16#fffffffe, T0),
    {16#ffffffff, T2} = Register(<<>>, 77, T1),
    {4, T3} = Register(<<>>, 77, T2),
    {5, T4} = Register(<<>>, 77, T3),
    %% A node that comes from a dead registry brings its own, and the next life counts from it.
    {1000, T5} = Register(<<"creation:1000">>, 77, T4),
    {1001, _} = Register(<<>>, 77, T5).

old_names_are_bounded(_) ->
    %% Given more old names than are remembered, expect the oldest forgotten.
    Life = fun(N, T) ->
                   Entry = #{name => integer_to_binary(N), port => N, node_type => 77,
                             protocol => 0, high => 6, low => 6, extra => <<>>},
                   {ok, _, T1} = chatter_epmd_names:register(Entry, {self(), 1}, 4, T),
                   chatter_epmd_names:unregister(self(), T1)
           end,
    Table = lists:foldl(Life, chatter_epmd_names:new(5, 3), lists:seq(1, 100)),
    {[], Old} = chatter_epmd_names:dump(Table),
    ?assertEqual([<<"98">>, <<"99">>, <<"100">>], [N || {N, _, _} <- Old]).

%%% Beside the real epmd -----------------------------------------------------------------

same_answers(Config) ->
    %% Given the same requests, whole, expect of both the same bytes and the same open or close.
    {Real, Ours} = both(Config, []),
    Holders = [{alive(P, alive2(<<"held">>, 4711, #{extra => <<"ex", 0, "tra">>})), P}
               || P <- [Real, Ours]],
    [same(Real, Ours, [frame(Body)], keep) || Body <- bodies()],
    [gen_tcp:close(S) || {{0, _, S}, _} <- Holders].

same_answers_relaxed(Config) ->
    %% Given both with relaxed checks, expect STOP and KILL to do the same, with live names.
    {Real, Ours} = both(Config, ["-relaxed_command_check"]),
    Holders = [S || P <- [Real, Ours], {0, _, S} <- [alive(P, alive2(<<"held">>, 4711))]],
    [same(Real, Ours, [frame(Body)], keep)
     || Body <- ["shel", "s", "sheld", "sheld", "n", "d", [$z, "held"]]],
    [?assertEqual({error, closed}, gen_tcp:recv(S, 0, 5000)) || S <- Holders],
    [{0, _, _} = alive(P, alive2(<<"held">>, 4711)) || P <- [Real, Ours]],
    same(Real, Ours, [frame("k")], keep),
    [wait_until(fun() -> refused(P) end) || P <- [Real, Ours]].

same_answers_to_fragments(Config) ->
    %% Given requests byte by byte, cut short and closed, and with bytes behind them, expect the
    %% same of both.
    {Real, Ours} = both(Config, []),
    Alive = alive2(<<"frag">>, 1, #{extra => <<"x">>}),
    Ask = frame("zfrag"),
    [same(Real, Ours, [<<B>> || <<B>> <= Whole], keep) || Whole <- [Ask, frame("n"), Alive]],
    [same(Real, Ours, [binary:part(Whole, 0, N)], shutdown)
     || Whole <- [Alive, Ask], N <- lists:seq(0, byte_size(Whole))],
    [same(Real, Ours, Pieces, keep)
     || Pieces <- [[<<Ask/binary, 1>>], [<<Ask/binary, Ask/binary>>], [<<0>>, <<1, "n">>],
                   [<<0, 0>>], [<<0, 0, "n">>], [<<255, 255>>], [<<3057:16>>], [<<3058:16>>],
                   [<<3057:16, $n, 0:(3056 * 8)>>], [<<3058:16, $n, 0:(3057 * 8)>>]]].

same_answers_to_mutants(Config) ->
    %% Given some hundred mutated requests, expect the same of both.
    rand:seed(exsss, seed()),
    {Real, Ours} = both(Config, []),
    %% With a name held, a mutant that is a KILL does no harm.
    [{0, _, _} = alive(P, alive2(<<"held">>, 1)) || P <- [Real, Ours]],
    Seeds = [alive2(<<"mutant">>, 7, #{extra => <<"x">>}), frame("zmutant"), frame("n"),
             frame("smutant"), frame(<<>>)],
    [same(Real, Ours, [mutate(lists:nth(rand:uniform(5), Seeds))], shutdown)
     || _ <- lists:seq(1, 300)].

same_order_of_names(Config) ->
    %% Given names that come and go, expect NAMES and DUMP in the same order as epmd has them.
    {Real, Ours} = both(Config, []),
    [begin
         Sockets = [begin {0, _, S} = alive(P, alive2(<<"n", N>>, N)), {N, S} end
                    || N <- "abcdef"],
         [begin
              {N, S} = lists:keyfind(N, 1, Sockets),
              gen_tcp:close(S),
              wait_until(fun() -> not lists:keymember(<<"n", N>>, 1, names(P)) end)
          end || N <- "bfa"],
         {0, _, _} = alive(P, alive2(<<"nb">>, $b))
     end || P <- [Real, Ours]],
    same(Real, Ours, [frame("n")], keep),
    same(Real, Ours, [frame("d")], keep).

bodies() ->
    Long = binary:copy(<<"a">>, 255),
    [<<_:16, Dup/binary>>, <<_:16, DupOld/binary>>, <<_:16, TooLong/binary>>,
     <<_:16, BadUtf8/binary>>, <<_:16, BigExtra/binary>>, <<_:16, Nul/binary>>,
     <<_:16, WideName/binary>>] =
        [alive2(<<"held">>, 1), alive2(<<"held">>, 1, #{high => 5}),
         alive2(<<Long/binary, "a">>, 1), alive2(<<"a", 16#c0, 16#80>>, 1),
         alive2(<<"b">>, 1, #{extra => binary:copy(<<"e">>, 1021)}), alive2(<<"a", 0, "b">>, 1),
         alive2(unicode:characters_to_binary(lists:duplicate(256, 16#e5)), 1)],
    ["n", "nn", "zheld", [$z, "held", 0], [$z, "held", 0, 0], "zhel", "zheldx", "z", [$z, 0],
     [$z, "he", 0, "ld"], [$z, 16#ff], [$z, 16#c3], [$z | binary_to_list(Long) ++ "a"],
     "d", "dump", "k", "kill", "s", "sheld", "snobody", "x", "xx", "x123456789012",
     "a", "p", "y", "v", "w", <<0>>, <<255>>, Dup, DupOld, TooLong, BadUtf8, BigExtra, Nul,
     WideName, <<Dup/binary, "behind">>].

%% A real epmd and a registry in this VM.
both(Config, Args) ->
    Real = ?config(epmd, Config),
    Ours = free_port(),
    _ = chatter_epmd_lab:start_epmd(Real, Args),
    _ = chatter_epmd_lab:registry(Ours, #{relaxed => Args =/= []}),
    {Real, Ours}.

same(Real, Ours, Pieces, End) ->
    [Expected, Got] = [normal(exchange(P, Pieces, End), P) || P <- [Real, Ours]],
    ?assertEqual(Expected, Got, Pieces),
    [?assertEqual(names(Real), names(Ours), Pieces) || Expected =/= {<<"OK">>, closed}].

%% What may differ: the creation, file descriptors, and the registry's own port.
normal({<<118, 0, C:32>>, End}, _) when C >= 4 -> {<<118, 0, "creation">>, End};
normal({<<121, 0, C:16>>, End}, _) when C >= 1, C =< 3 -> {<<121, 0, "creation">>, End};
normal({<<Port:32, Text/binary>>, End}, Port) ->
    {re:replace(Text, "fd = [0-9]+", "fd = N", [global, {return, binary}]), End};
normal(Other, _) -> Other.

refused(Port) ->
    case gen_tcp:connect({127, 0, 0, 1}, Port, []) of
        {error, econnrefused} -> true;
        {ok, S} -> gen_tcp:close(S), false
    end.

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

epmd(Port, Args) -> chatter_epmd_lab:run("epmd", ["-port", integer_to_list(Port) | Args]).

erl_call(Port, Node) ->
    chatter_epmd_lab:run(erl_call_path(), ["-sname", Node, "-c", "chatter", "-a", "erlang node"],
                         [{"ERL_EPMD_PORT", integer_to_list(Port)}]).

erl_call_path() ->
    [Path | _] = [P || P <- [os:find_executable("erl_call"),
                             filename:join([code:lib_dir(erl_interface), "bin", "erl_call"])],
                       is_list(P), filelib:is_regular(P)],
    Path.

listing(Port, Lines) ->
    iolist_to_binary(["epmd: up and running on port ", integer_to_list(Port), " with data:\n",
                      Lines]).

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

%%% Takeover -----------------------------------------------------------------------------

server_is_killed(Config) ->
    %% Given four nodes, of which the serving one is killed, expect the three other names there
    %% within a second, and the nodes with the creations they had.
    Port = ?config(epmd, Config),
    [{_, OsPid} = Server | Others] = [chatter_epmd_lab:node(N, Port, []) || N <- [a, b, c, d]],
    ?assert(is_serving(Server)),
    Before = names(Port),
    Creations = creations_of(Others),
    ?assertEqual(4, length(Before)),
    Expected = lists:keydelete(<<"a">>, 1, Before),
    {Ms, _} = chatter_epmd_lab:ms(
                fun() -> chatter_epmd_lab:kill(OsPid),
                         wait_until(fun() -> names(Port) =:= Expected end) end),
    ct:pal("all names were back after ~b ms", [Ms]),
    ?assert(Ms =< 1000),
    ?assertEqual(Creations, creations_of(Others)),
    ?assertEqual(1, length([P || P <- Others, is_serving(P)])),
    [{B, _}, _, D] = Others,
    ?assertEqual(pong, peer:call(B, net_adm, ping, [chatter_epmd_lab:name_of(D)])),
    chatter_epmd_lab:stop(Others).

stock_epmd_is_killed(Config) ->
    %% Given nodes at a stock epmd that is killed, expect one of them to serve within a second.
    Port = ?config(epmd, Config),
    Epmd = chatter_epmd_lab:start_epmd(Port),
    Peers = [chatter_epmd_lab:node(N, Port, []) || N <- [a, b, c]],
    Before = names(Port),
    Creations = creations_of(Peers),
    ?assertEqual([], [P || P <- Peers, is_serving(P)]),
    {Ms, _} = chatter_epmd_lab:ms(
                fun() -> chatter_epmd_lab:kill(Epmd),
                         wait_until(fun() -> lists:any(fun is_serving/1, Peers) end),
                         wait_until(fun() -> names(Port) =:= Before end) end),
    ct:pal("all names were back after ~b ms", [Ms]),
    ?assert(Ms =< 1000),
    ?assertEqual(Creations, creations_of(Peers)),
    ?assertEqual(1, length([P || P <- Peers, is_serving(P)])),
    chatter_epmd_lab:stop(Peers).

creation_goes_on(Config) ->
    %% Given a node that has survived its registry, expect its next life to get the creation after
    %% the one it had, although the new registry has never given it one.
    Port = ?config(epmd, Config),
    [{_, OsPid}, {_, _} = Second] = [chatter_epmd_lab:node(N, Port, []) || N <- [a, b]],
    {C, _} = Third = chatter_epmd_lab:node(c, Port, []),
    [Creation] = creations_of([Third]),
    chatter_epmd_lab:kill(OsPid),
    wait_until(fun() -> length(names(Port)) =:= 2 end),
    ?assertMatch({ok, #{extra := _}}, peer:call(C, chatter_epmd, lookup, [c, localhost])),
    case is_serving(Second) of
        true ->
            chatter_epmd_lab:stop(Third),
            wait_until(fun() -> length(names(Port)) =:= 1 end),
            Again = chatter_epmd_lab:node(c, Port, []),
            ?assertEqual([Creation + 1], creations_of([Again])),
            chatter_epmd_lab:stop([Second, Again]);
        false ->
            [CreationB] = creations_of([Second]),
            chatter_epmd_lab:stop(Second),
            wait_until(fun() -> length(names(Port)) =:= 1 end),
            Again = chatter_epmd_lab:node(b, Port, []),
            ?assertEqual([CreationB + 1], creations_of([Again])),
            chatter_epmd_lab:stop([Third, Again])
    end.

many_takeovers(Config) ->
    %% Given eight nodes and the server of the moment killed again and again, expect every time all
    %% names of the living, as a rule within a second.
    Port = ?config(epmd, Config),
    Peers = [chatter_epmd_lab:node(N, Port, []) || N <- [a, b, c, d, e, f, g, h]],
    Times = kill_servers(Port, Peers, []),
    ct:pal("all names were back after ~w ms", [Times]),
    %% The time includes the command that kills; a busy machine may be late once.
    ?assert(lists:nth(4, lists:sort(Times)) =< 1000).

kill_servers(_Port, [Last], Times) ->
    chatter_epmd_lab:stop(Last),
    Times;
kill_servers(Port, Peers, Times) ->
    [{_, OsPid} = Server] = [P || P <- Peers, is_serving(P)],
    Others = Peers -- [Server],
    Expected = lists:sort([list_to_binary(hd(string:split(atom_to_list(
                             chatter_epmd_lab:name_of(P)), "@"))) || P <- Others]),
    {Ms, _} = chatter_epmd_lab:ms(
                fun() -> chatter_epmd_lab:kill(OsPid),
                         wait_until(fun() -> [N || {N, _} <- names(Port)] =:= Expected end) end),
    kill_servers(Port, Others, [Ms | Times]).

stock_node_comes_back(Config) ->
    %% Given a stock node at our registry, whose server is killed, expect its name back when its
    %% own erl_epmd reconnects (it waits two seconds).
    Port = ?config(epmd, Config),
    {_, OsPid} = chatter_epmd_lab:node(a, Port, []),
    B = chatter_epmd_lab:node(b, Port, []),
    Stock = chatter_epmd_lab:stock(stock, Port, []),
    chatter_epmd_lab:kill(OsPid),
    {Ms, _} = chatter_epmd_lab:ms(
                fun() -> wait_until(fun() -> [N || {N, _} <- names(Port)]
                                                 =:= [<<"b">>, <<"stock">>] end) end),
    ct:pal("the stock node was back after ~b ms", [Ms]),
    chatter_epmd_lab:stop([B, Stock]).

kill_request(Config) ->
    %% Given a serving node with relaxed checks, expect KILL to end its service, so that a stock
    %% epmd can be started there, and the node to register with that.
    Port = ?config(epmd, Config),
    A = chatter_epmd_lab:node(a, Port, [], [{"ERL_EPMD_RELAXED_COMMAND_CHECK", "1"}]),
    ?assert(is_serving(A)),
    ?assertEqual({0, <<"Killed\n">>}, epmd(Port, ["-kill"])),
    _ = chatter_epmd_lab:start_epmd(Port),
    wait_until(fun() -> [N || {N, _} <- names(Port)] =:= [<<"a">>] end),
    ?assertNot(is_serving(A)),
    chatter_epmd_lab:stop(A).

is_serving({Peer, _}) ->
    #{registry := #{serving := Serving}} = peer:call(Peer, chatter_epmd, info, []),
    Serving.

%% What the VM has, and what its agent would register with.
creations_of(Peers) ->
    [begin
         Creation = peer:call(P, erlang, system_info, [creation]),
         #{agent := #{creation := Creation}} = peer:call(P, chatter_epmd, info, []),
         Creation
     end || {P, _} <- Peers].

%%% Hostile peers ------------------------------------------------------------------------

idle_connections(Config) ->
    %% Given a thousand connections that say nothing, expect others to be served meanwhile, and
    %% all of the thousand to be closed when their time is over.
    Port = ?config(epmd, Config),
    Registry = chatter_epmd_lab:registry(Port, #{request_ms => 1500}),
    Sockets = [chatter_epmd_lab:connect(Port) || _ <- lists:seq(1, 1000)],
    wait_until(fun() -> maps:get(pending, chatter_epmd_registry:info(Registry)) =:= 1000 end),
    {Ms, {0, _, _}} = chatter_epmd_lab:ms(fun() -> alive(Port, alive2(<<"a">>, 1)) end),
    ct:pal("registered beside them in ~b ms", [Ms]),
    ?assertEqual([{<<"a">>, 1}], names(Port)),
    [?assertEqual({error, closed}, gen_tcp:recv(S, 0, 10000)) || S <- Sockets],
    wait_until(fun() -> maps:get(pending, chatter_epmd_registry:info(Registry)) =:= 0 end),
    ?assertEqual([{<<"a">>, 1}], names(Port)).

slow_drip(Config) ->
    %% Given a client that sends one byte now and then, expect its time to be that of the whole
    %% request.
    Port = ?config(epmd, Config),
    _ = chatter_epmd_lab:registry(Port, #{request_ms => 600}),
    Socket = chatter_epmd_lab:connect(Port),
    {Ms, closed} = chatter_epmd_lab:ms(fun() -> drip(Socket, alive2(<<"slow">>, 1)) end),
    ?assert(Ms >= 500 andalso Ms < 3000),
    ?assertEqual([], names(Port)).

drip(_Socket, <<>>) -> sent;
drip(Socket, <<Byte, Rest/binary>>) ->
    case gen_tcp:send(Socket, <<Byte>>) =:= ok andalso gen_tcp:recv(Socket, 0, 100) of
        {error, timeout} -> drip(Socket, Rest);
        _ -> closed
    end.

oversize(Config) ->
    %% Given a request that claims, or is, too long, expect a close and no memory spent.
    Port = ?config(epmd, Config),
    Registry = chatter_epmd_lab:registry(Port),
    ?assertEqual({<<>>, closed}, exchange(Port, [<<16#ffff:16>>])),
    ?assertEqual({<<>>, closed}, exchange(Port, [binary:copy(<<255>>, 1000000)])),
    ?assertEqual({<<>>, closed}, exchange(Port, [<<3058:16, 0:(3058 * 8)>>])),
    ?assertMatch(#{rejected := 3}, chatter_epmd_registry:info(Registry)).

too_many_pending(Config) ->
    %% Given more unregistered connections than the limit, expect the oldest closed, the others
    %% kept, and registered ones never touched.
    Port = ?config(epmd, Config),
    Registry = chatter_epmd_lab:registry(Port, #{max_pending => 5}),
    {0, _, Registered} = alive(Port, alive2(<<"a">>, 1)),
    Sockets = [chatter_epmd_lab:connect(Port) || _ <- lists:seq(1, 20)],
    {Old, Young} = lists:split(15, Sockets),
    [?assertEqual({error, closed}, gen_tcp:recv(S, 0, 5000)) || S <- Old],
    [?assertEqual({error, timeout}, gen_tcp:recv(S, 0, 10)) || S <- [Registered | Young]],
    ?assertMatch(#{evicted := 15, pending := 5, names := 1}, chatter_epmd_registry:info(Registry)).

too_many_names(Config) ->
    %% Given as many names as the limit, expect one more refused, and taken once there is room.
    Port = ?config(epmd, Config),
    _ = chatter_epmd_lab:registry(Port, #{max_names => 2}),
    {0, _, A} = alive(Port, alive2(<<"a">>, 1)),
    {0, _, _} = alive(Port, alive2(<<"b">>, 1)),
    {1, 99, _} = alive(Port, alive2(<<"c">>, 1)),
    gen_tcp:close(A),
    wait_until(fun() -> length(names(Port)) =:= 1 end),
    {0, _, _} = alive(Port, alive2(<<"c">>, 1)).

out_of_descriptors(Config) ->
    %% Given a VM with few file descriptors and more connections than that, expect the registry to
    %% live, to keep its names, and to take new ones.
    Port = ?config(epmd, Config),
    Args = io_lib:format("ulimit -n 64; exec erl -noinput -pa ~ts -run chatter_epmd main -port ~b",
                         [chatter_epmd_lab:code_path(), Port]),
    _ = chatter_epmd_lab:start_program("/bin/sh", ["-c", lists:flatten(Args)]),
    wait_until(fun() -> not refused(Port) end),
    {0, _, First} = alive(Port, alive2(<<"first">>, 1)),
    Sockets = [chatter_epmd_lab:connect(Port) || _ <- lists:seq(1, 200)],
    {0, _, _} = alive(Port, alive2(<<"second">>, 2)),
    ?assertEqual([{<<"first">>, 1}, {<<"second">>, 2}], names(Port)),
    ?assertEqual({error, timeout}, gen_tcp:recv(First, 0, 0)),
    [gen_tcp:close(S) || S <- Sockets].

other_hosts_only_ask(Config) ->
    %% Given a peer whose address is not of the loopback network, expect it to be told ports and
    %% names, and nothing else.
    Port = ?config(epmd, Config),
    Registry = chatter_epmd_lab:registry(Port, #{relaxed => true}),
    {0, _, _} = alive(Port, alive2(<<"a">>, 1)),
    %% From an address of this host that is not the one connected to.
    From = [{ip, chatter_epmd_lab:non_loopback()}],
    Ask = fun(Request) ->
                  Socket = chatter_epmd_lab:connect({127, 0, 0, 1}, Port, From),
                  ok = gen_tcp:send(Socket, Request),
                  gen_tcp:recv(Socket, 0, 5000)
          end,
    ?assertMatch({ok, <<119, 0, _/binary>>}, Ask(frame("za"))),
    ?assertMatch({ok, <<Port:32, _/binary>>}, Ask(frame("n"))),
    [?assertEqual({error, closed}, Ask(R))
     || R <- [alive2(<<"b">>, 1), frame("d"), frame("k"), frame("sa")]],
    ?assertMatch(#{rejected := 4}, chatter_epmd_registry:info(Registry)),
    ?assertEqual([{<<"a">>, 1}], names(Port)),
    %% The host's own address, connected to from itself, is local.
    Own = chatter_epmd_lab:non_loopback(),
    ?assertMatch({0, _, _}, chatter_epmd_lab:alive(Own, Port, alive2(<<"b">>, 1))).

chatty_registrant(Config) ->
    %% Given a registered node that sends more, expect its registration to end, as with epmd.
    Port = ?config(epmd, Config),
    _ = chatter_epmd_lab:registry(Port),
    {0, _, Socket} = alive(Port, alive2(<<"a">>, 1)),
    ok = gen_tcp:send(Socket, "more"),
    ?assertEqual({error, closed}, gen_tcp:recv(Socket, 0, 5000)),
    wait_until(fun() -> names(Port) =:= [] end).

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

%%% The program --------------------------------------------------------------------------

main_serves(Config) ->
    %% Given the registry as a program, expect it to serve, to list, and to end when killed.
    Port = ?config(epmd, Config),
    Program = start_main(Port, ["-port", integer_to_list(Port)]),
    {0, _, Socket} = alive(Port, alive2(<<"a">>, 1)),
    Listing = listing(Port, "name a at port 1\n"),
    ?assertEqual({0, Listing}, epmd(Port, ["-names"])),
    ?assertEqual({0, Listing},
                 chatter_epmd_lab:run_ours(["-port", integer_to_list(Port), "-names"], [])),
    gen_tcp:close(Socket),
    wait_until(fun() -> names(Port) =:= [] end),
    ?assertEqual({0, <<"Killed\n">>}, epmd(Port, ["-kill"])),
    ?assertEqual(0, receive {Program, {exit_status, S}} -> S after 10000 -> still_running end).

main_behind_extra(Config) ->
    %% Given arguments behind -extra, and the port from the environment, expect the same.
    Port = ?config(epmd, Config),
    Env = [{"ERL_EPMD_PORT", integer_to_list(Port)}],
    ?assertEqual({1, <<"epmd: Cannot connect to local epmd\n">>},
                 chatter_epmd_lab:run_ours(["-extra", "-names"], Env)),
    _ = chatter_epmd_lab:registry(Port),
    ?assertEqual({0, listing(Port, "")}, chatter_epmd_lab:run_ours(["-extra", "-names"], Env)).

main_port_taken(Config) ->
    %% Given a port that an epmd serves, expect one line and status 1.
    Port = ?config(epmd, Config),
    _ = chatter_epmd_lab:registry(Port),
    {1, Line} = chatter_epmd_lab:run_ours(["-port", integer_to_list(Port)], []),
    ?assertEqual(iolist_to_binary(io_lib:format("epmd: there is already something listening at "
                                                "port ~b: an epmd~n", [Port])), Line).

main_bad_arguments(_) ->
    %% Given arguments that are wrong, expect them named, the usage, and status 1.
    [begin
         {1, Output} = chatter_epmd_lab:run_ours(Args, []),
         ?assertMatch({match, _}, re:run(Output, Said), Args),
         ?assertMatch({match, _}, re:run(Output, "usage: chatter_epmd"), Args)
     end || {Args, Said} <- [{["-prot", "1"], "option: -prot"}, {["-port", "0"], "value: -port 0"},
                             {["-port", "x"], "value: -port x"}, {["-port"], "missing: -port"},
                             {["-extra", "names"], "option: names"},
                             {["-names", "-kill"], "option: -kill"}]],
    ?assertEqual({ok, {stop, "a"}, #{port => 1, debug => true, relaxed => true}},
                 chatter_epmd_cli:parse(["-d", "-port", "1", "-relaxed_command_check",
                                         "-stop", "a"])).

main_commands(Config) ->
    %% Given a relaxed registry as a program, expect each command to say what that of epmd says.
    Port = ?config(epmd, Config),
    Program = start_main(Port, ["-port", integer_to_list(Port), "-relaxed_command_check"]),
    {0, _, _} = alive(Port, alive2(<<"a">>, 1)),
    {0, _, _} = alive(Port, alive2(<<"b">>, 1)),
    Ours = fun(Args) -> chatter_epmd_lab:run_ours(["-port", integer_to_list(Port) | Args], []) end,
    ?assertEqual(epmd(Port, ["-dump"]), Ours(["-dump"])),
    ?assertEqual({0, <<"STOPPED\n">>}, Ours(["-stop", "a"])),
    ?assertEqual(epmd(Port, ["-stop", "a"]), Ours(["-stop", "a"])),
    ?assertEqual([{<<"b">>, 1}], names(Port)),
    ?assertEqual({0, <<"Killed\n">>}, Ours(["-kill"])),
    ?assertEqual(0, receive {Program, {exit_status, S}} -> S after 10000 -> still_running end).

start_main(Port, Args) ->
    Program = chatter_epmd_lab:start_program(
                os:find_executable("erl"),
                ["-noinput", "-pa", chatter_epmd_lab:code_path(),
                 "-run", "chatter_epmd", "main" | Args]),
    wait_until(fun() -> not refused(Port) end),
    Program.

%%% Bytes --------------------------------------------------------------------------------

decode(Bytes) ->
    case chatter_epmd_wire:request_length(Bytes) of
        {ok, Len} when byte_size(Bytes) =:= Len + 2 ->
            chatter_epmd_wire:decode_request(binary:part(Bytes, 2, Len));
        _ -> incomplete
    end.

%% One to three random changes, the length field sometimes set right afterwards.
mutate(Bytes) -> fix_length(mutate(Bytes, rand:uniform(3)), rand:uniform(2)).

mutate(Bytes, 0) -> Bytes;
mutate(Bytes, N) ->
    At = rand:uniform(byte_size(Bytes) + 1) - 1,
    <<Head:At/binary, Tail/binary>> = Bytes,
    mutate(mutate_at(rand:uniform(3), Head, Tail), N - 1).

mutate_at(1, Head, <<_, Tail/binary>>) -> <<Head/binary, (rand:uniform(256) - 1), Tail/binary>>;
mutate_at(2, Head, Tail) -> <<Head/binary, (rand:uniform(256) - 1), Tail/binary>>;
mutate_at(_, Head, <<_, Tail/binary>>) -> <<Head/binary, Tail/binary>>;
mutate_at(_, Head, <<>>) -> Head.

fix_length(<<_:16, Body/binary>>, 1) -> frame(Body);
fix_length(Bytes, _) -> Bytes.

%% Printed first, so that a failing run can be repeated.
seed() ->
    Seed = case os:getenv("CHATTER_EPMD_SEED") of
               false -> erlang:system_time() rem 1000000007;
               Text -> list_to_integer(Text)
           end,
    ct:pal("CHATTER_EPMD_SEED=~b", [Seed]),
    Seed.
