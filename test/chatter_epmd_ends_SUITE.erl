%% SPDX-License-Identifier: Apache-2.0
%%
%% The epmd of Chatter when things end or go wrong: takeovers, and hostile peers.
-module(chatter_epmd_ends_SUITE).
-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).
-import(chatter_epmd_lab, [wait_until/1, free_port/0, names/1, frame/1, alive2/2, alive/2,
                           exchange/2, refused/1, epmd/2, is_serving/1]).

suite() -> [{timetrap, {seconds, 180}}].

all() -> [{group, G} || {G, _, _} <- groups()].

groups() ->
    [{takeover, [], [server_is_killed, stock_epmd_is_killed, creation_goes_on, many_takeovers,
                     stock_node_comes_back, kill_request]},
     {hostile, [], [idle_connections, slow_drip, oversize, out_of_descriptors, too_many_pending,
                    too_many_names, other_hosts_only_ask, chatty_registrant]}].

init_per_testcase(_Case, Config) -> [{epmd, free_port()} | Config].

end_per_testcase(_Case, _Config) -> ok.

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
                         wait_until(fun() -> lists:any(fun(P) -> is_serving(P) end, Peers) end),
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
