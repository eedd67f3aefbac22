%% The network laboratory itself, and what `global` makes of links that are cut, in a cluster of 24
%% nodes with default settings.
-module(chatter_lab_SUITE).
-behaviour(ct_suite).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile(export_all).
-compile(nowarn_export_all).

-import(chatter_cluster, [wait_until/2]).
-import(chatter_work, [on/2]).

-define(TIMEOUT_MS, 20000).
-define(NODES, 24).
%% A cut of 300 ms lasts as much longer as two commands take, and TCP repeats itself after 600 ms
%% at best, then after 1400: on a busy machine the default of 1000 is too close.
-define(HOLD_MS, 3000).
-define(BOTH, a_name_in_both).

suite() -> [{timetrap, {minutes, 5}}].

all() -> [{group, bridge}, {group, switch}, rate, shapes, nothing_is_left, left_behind,
          {group, global}].

%% After a cut, TCP repeats for seconds what it had sent over the former connection: a segment of
%% that could become the reset. So that comes first.
groups() ->
    [{bridge, [], [one_way_cut, cut_and_healed]},
     {switch, [], [reset, one_way_cut, cut_and_healed]},
     {global, [sequence], [formed, one_link_cut, one_clean_split, whole_again]}].

init_per_suite(_Config) ->
    case chatter_lab:available() of
        ok -> [];
        Skip -> Skip
    end.

end_per_suite(_Config) -> ok.

init_per_group(global, Config) ->
    chatter_work:shared(fun() -> cluster_of_24(Config) end);
init_per_group(Network, Config) ->
    chatter_work:shared(
      fun() ->
              ok = chatter_cluster:new(),
              Lab = chatter_lab:open(#{nodes => 2, network => Network}),
              Opts = #{chatter => [{hold_ms, ?HOLD_MS}]},
              [{lab, Lab}, {peers, start_all(Lab, [{1, 2}], Opts)} | Config]
      end).

end_per_group(_, Config) ->
    ok = chatter_cluster:stop_all(),
    chatter_lab:close(?config(lab, Config)).

init_per_testcase(_, Config) -> Config.

end_per_testcase(Case, Config) ->
    case lists:member(Case, all()) of
        true ->
            ok = chatter_cluster:stop_all(),
            _ = [ok = chatter_lab:close(Lab) || Lab <- [get(lab)], Lab =/= undefined],
            Config;
        false -> ok
    end.

start_all(Lab, Links, Opts) ->
    Places = lists:seq(1, chatter_lab:size(Lab)),
    Peers = [chatter_lab:start(Lab, I, Opts#{links => static,
                                             neighbours => [chatter_lab:node_name(J) || J <- Js]})
             || I <- Places, Js <- [chatter_nemesis_plan:neighbours(I, Links)]],
    ok = chatter_cluster:await_routes(Peers, 60000),
    Peers.

%%% ------------------------------------------------------------------------------------
%%% The laboratory

%% Given a link cut in one direction, expect it down at both ends, and up again when healed.
one_way_cut(Config) ->
    Lab = ?config(lab, Config),
    [begin
         ok = chatter_lab:cut(Lab, [Way]),
         await_links(Config, 0),
         ok = chatter_lab:heal(Lab, [Way]),
         await_links(Config, 1)
     end || Way <- [{1, 2}, {2, 1}]].

%% Given a link cut in both directions for a moment shorter than the hold, expect the same link
%% afterwards; for longer, another.
cut_and_healed(Config) ->
    Lab = ?config(lab, Config),
    Both = chatter_lab:both([{1, 2}]),
    Since = since(Config),
    ok = chatter_lab:cut(Lab, Both),
    pause(300),
    ok = chatter_lab:heal(Lab, Both),
    pause(1500),
    ?assert(since(Config) > Since + 1500),
    ok = chatter_lab:cut(Lab, Both),
    await_links(Config, 0),
    ok = chatter_lab:heal(Lab, Both),
    await_links(Config, 1),
    ?assert(since(Config) < Since + 1500).

%% Given a reset injected, expect both ends to lose the connection and to make a new one.
reset(Config) ->
    Lab = ?config(lab, Config),
    pause(1000),
    Since = since(Config),
    #{resets := Before} = chatter_lab:figures(Lab),
    ok = chatter_lab:reset(Lab, [{1, 2}]),
    wait_until(fun() -> maps:get(resets, chatter_lab:figures(Lab)) =:= Before + 1 end,
               ?TIMEOUT_MS),
    wait_until(fun() -> await_links(Config, 1), since(Config) < Since end, ?TIMEOUT_MS).

%% Given a limit by tbf and by the switch, expect a megabyte to take as long as it should.
rate(_Config) ->
    [begin
         ok = chatter_cluster:new(),
         Lab = chatter_lab:open(#{nodes => 2, network => Network}),
         _ = put(lab, Lab),
         [A, _] = Peers = start_all(Lab, [{1, 2}], #{}),
         Free = megabyte(A),
         ok = Limit(Lab),
         Limited = megabyte(A),
         ct:pal("~p: ~b ms without, ~b ms with a limit of 1 MB/s", [Network, Free, Limited]),
         ?assert(Free < 500),
         ?assert(Limited > 800),
         ?assert(Limited < 3000),
         ok = chatter_cluster:stop_all(),
         _ = [Peers],
         ok = chatter_lab:close(Lab),
         _ = erase(lab)
     end || {Network, Limit} <-
                [{bridge, fun(Lab) -> chatter_lab:rate(Lab, 1, 8000) end},
                 {switch, fun(Lab) -> chatter_lab:shape(Lab, [{1, 2}], [{rate, 1000000}]) end}]].

megabyte(A) ->
    B = chatter_lab:node_name(2),
    on(A, fun() ->
                  _ = erpc:call(B, erlang, node, []),
                  Data = rand:bytes(1 bsl 20),
                  Began = erlang:monotonic_time(millisecond),
                  _ = erpc:call(B, erlang, byte_size, [Data]),
                  erlang:monotonic_time(millisecond) - Began
          end).

%% Given delay and loss, expect the round trip to show the delay, and all to arrive in order.
shapes(_Config) ->
    ok = chatter_cluster:new(),
    Lab = chatter_lab:open(#{nodes => 2, network => switch, seed => 1}),
    _ = put(lab, Lab),
    [A, B] = start_all(Lab, [{1, 2}], #{}),
    Both = chatter_lab:both([{1, 2}]),
    ok = chatter_lab:shape(Lab, Both, [{delay, 20}, {loss, 2}, {duplicate, 2}, {reorder, 2}]),
    Name = chatter_lab:node_name(2),
    ?assertMatch({Us, Name} when Us >= 40000,
                 on(A, fun() -> timer:tc(erpc, call, [Name, erlang, node, []]) end)),
    ok = chatter_work:sink(B, through),
    _ = chatter_work:flood(A, {through, Name}, {2, 500}, [10, 2000]),
    ok = chatter_work:await_seen({B, through}, 1000, 60000),
    #{lost := Lost, duplicated := Twice, reordered := Late} = chatter_lab:figures(Lab),
    ?assert(Lost > 0 andalso Twice > 0 andalso Late > 0).

%% Given a laboratory with a stopped process in it, expect nothing of it left when the VM that
%% opened it is killed.
nothing_is_left(_Config) ->
    {Prefix, Program, Pids} = other_vm(),
    ok = chatter_cluster:close(Program),
    wait_until(fun() -> gone(Prefix, Pids) end, ?TIMEOUT_MS).

%% Given the same with the guard killed too, expect the next laboratory to remove what is left.
left_behind(_Config) ->
    {Prefix, Program, Pids} = other_vm(),
    "" = os:cmd("kill -KILL $(pgrep -f '^/bin/sh .*lab/guard " ++ Prefix ++ "')"),
    ok = chatter_cluster:close(Program),
    pause(1000),
    ?assertNotEqual(nomatch, string:find(os:cmd("ip netns list"), Prefix)),
    Lab = chatter_lab:open(#{nodes => 1, network => bridge}),
    _ = put(lab, Lab),
    wait_until(fun() -> gone(Prefix, Pids) end, ?TIMEOUT_MS).

gone(Prefix, Pids) ->
    string:find(os:cmd("ip netns list"), Prefix) =:= nomatch
        andalso [] =:= [Pid || Pid <- Pids, filelib:is_file("/proc/" ++ Pid ++ "/exe")].

%% A VM with a laboratory, in which a process has been stopped.
other_vm() ->
    Paths = [filename:dirname(code:which(M)) || M <- [chatter_lab, chatter_dist]],
    Eval = "_ = chatter_lab:open(#{nodes => 2}), io:format(\"open ~s.~n\", [os:getpid()]), "
        "receive after infinity -> ok end.",
    Program = chatter_cluster:open("erl", ["-noinput", "-pa" | Paths] ++ ["-eval", Eval], #{}),
    Output = chatter_cluster:await_output(Program, "open \\d+\\.", 60000),
    {match, [Pid]} = re:run(Output, "open (\\d+)\\.", [{capture, all_but_first, list}]),
    Prefix = "chlab." ++ Pid ++ ".",
    [Namespace | _] = [N || Line <- string:lexemes(os:cmd("ip netns list"), "\n"),
                            N <- [hd(string:lexemes(Line, " "))],
                            lists:prefix(Prefix, N), lists:suffix(".1", N)],
    _ = os:cmd("nsenter --net=/run/netns/" ++ Namespace ++ " setsid sleep 600 >/dev/null 2>&1 &"),
    Pids = wait_until(fun() ->
                              case string:lexemes(os:cmd("ip netns pids " ++ Namespace), "\n") of
                                  [_ | _] = Ps -> {ok, Ps};
                                  [] -> none
                              end
                      end, ?TIMEOUT_MS),
    _ = [os:cmd("kill -STOP " ++ P) || P <- Pids],
    {Prefix, Program, Pids}.

await_links(Config, Count) ->
    wait_until(fun() ->
                       [Count, Count] =:= [length(on(P, fun chatter:neighbours/0))
                                           || P <- ?config(peers, Config)]
               end, ?TIMEOUT_MS).

since(Config) ->
    [#{since_ms := Since}] = on(hd(?config(peers, Config)), fun chatter:links/0),
    Since.

%%% ------------------------------------------------------------------------------------
%%% 24 nodes, `global` with prevent_overlapping_partitions as it is by default

cluster_of_24(Config) ->
    ok = chatter_cluster:new(),
    {?NODES, Links} = chatter_nemesis_plan:links({circulant, ?NODES, [1, 5]}),
    Lab = chatter_lab:open(#{nodes => ?NODES, network => switch}),
    %% `global' warns of each node that goes; with two halves that is a lot.
    Peers = start_all(Lab, Links, #{args => ["-kernel", "logger_level", "error"]}),
    [{lab, Lab}, {peers, Peers}, {links, Links} | Config].

%% Given one node that talks to all others, expect all to be connected with each other, names of
%% each to be known to all, and nobody to have gone meanwhile.
formed(Config) ->
    Peers = ?config(peers, Config),
    [ok = chatter_work:watch(P) || P <- Peers],
    meet(Peers),
    await_whole(Peers),
    [ok = register_name(P, I) || {I, P} <- lists:zip(lists:seq(1, ?NODES), Peers)],
    await_names(Peers, lists:seq(1, ?NODES)),
    ?assertEqual([], downs(Peers)).

%% Given one link cut for three seconds, expect no nodedown.
one_link_cut(Config) ->
    #{lab := Lab, peers := Peers, links := [{A, B} | _]} = maps:from_list(Config),
    Both = chatter_lab:both([{A, B}]),
    ok = chatter_lab:cut(Lab, Both),
    pause(3000),
    ?assertNot(lists:member(chatter_lab:node_name(B),
                            on(lists:nth(A, Peers), fun chatter:neighbours/0))),
    ok = chatter_lab:heal(Lab, Both),
    pause(1000),
    ?assertEqual([], downs(Peers)),
    await_whole(Peers).

%% Given the cluster cut in two, expect each node to see exactly the other half down, once, and the
%% names of its own half to stay, and of the other to go.
one_clean_split(Config) ->
    #{lab := Lab, peers := Peers} = maps:from_list(Config),
    ok = chatter_lab:cut(Lab, across()),
    [begin
         wait_until(fun() -> others(I) =:= lists:sort(on(P, fun erlang:nodes/0) ++ [node_of(P)])
                                 orelse on(P, fun erlang:nodes/0)
                    end, ?TIMEOUT_MS)
     end || {I, P} <- lists:zip(lists:seq(1, ?NODES), Peers)],
    pause(3000),
    [?assertEqual({I, lists:sort([{nodedown, N} || N <- all_nodes() -- others(I)])},
                  {I, lists:sort(seen(P))})
     || {I, P} <- lists:zip(lists:seq(1, ?NODES), Peers)],
    {First, Second} = lists:split(?NODES div 2, Peers),
    await_names(First, lists:seq(1, ?NODES div 2)),
    await_names(Second, lists:seq(?NODES div 2 + 1, ?NODES)),
    %% Both halves register the same name, for the next case.
    [ok = register_name(hd(Half), ?BOTH) || Half <- [First, Second]].

%% Given the halves joined again and one node of each that talks to the other, expect all to be
%% connected, one owner of the name that both had, and each nodeup seen once.
whole_again(Config) ->
    #{lab := Lab, peers := Peers} = maps:from_list(Config),
    ok = chatter_lab:heal(Lab, across()),
    Began = chatter_work:now_ms(),
    ok = chatter_cluster:await_routes(Peers, ?TIMEOUT_MS),
    ct:pal("all routes ~b ms after healing", [chatter_work:now_ms() - Began]),
    meet([hd(Peers), lists:last(Peers)]),
    await_whole(Peers),
    ct:pal("whole ~b ms after healing", [chatter_work:now_ms() - Began]),
    await_names(Peers, lists:seq(1, ?NODES)),
    wait_until(fun() ->
                       Owners = [on(P, fun() -> global:whereis_name(?BOTH) end) || P <- Peers],
                       case lists:usort(Owners) of
                           [Pid] when is_pid(Pid) -> true;
                           Others -> Others
                       end
               end, ?TIMEOUT_MS),
    [?assertEqual({I, lists:sort([{What, N} || N <- all_nodes() -- others(I),
                                               What <- [nodedown, nodeup]])},
                  {I, lists:sort(seen(P))})
     || {I, P} <- lists:zip(lists:seq(1, ?NODES), Peers)].

all_nodes() -> lists:sort([chatter_lab:node_name(I) || I <- lists:seq(1, ?NODES)]).

%% The half of a node.
others(I) when I =< ?NODES div 2 ->
    lists:sort([chatter_lab:node_name(J) || J <- lists:seq(1, ?NODES div 2)]);
others(_) -> all_nodes() -- others(1).

across() ->
    chatter_lab:both([{I, J} || I <- lists:seq(1, ?NODES div 2),
                                J <- lists:seq(?NODES div 2 + 1, ?NODES)]).

node_of(#{node := Node}) -> Node.

%% The first talks to the others until it is connected to each.
meet([First | Others]) ->
    [wait_until(fun() -> pong =:= on(First, fun() -> net_adm:ping(Node) end) end, ?TIMEOUT_MS)
     || #{node := Node} <- Others].

await_whole(Peers) ->
    [wait_until(fun() ->
                        Missing = all_nodes() -- [node_of(P) | on(P, fun erlang:nodes/0)],
                        Missing =:= [] orelse {node_of(P), misses, Missing}
                end, ?TIMEOUT_MS) || P <- Peers].

register_name(Peer, Name) ->
    on(Peer, fun() ->
                     Pid = spawn(fun() -> receive after infinity -> ok end end),
                     yes = global:register_name(Name, Pid),
                     ok
             end).

%% All these nodes know exactly these names, each as that of the node of that number.
await_names(Peers, Names) ->
    Expected = [{I, chatter_lab:node_name(I)} || I <- Names],
    [wait_until(fun() ->
                        Known = on(P, fun() -> [{N, node(global:whereis_name(N))}
                                                || N <- global:registered_names(),
                                                   is_integer(N)] end),
                        lists:sort(Known) =:= Expected
                            orelse {node_of(P), Expected -- Known, Known -- Expected}
                end, ?TIMEOUT_MS) || P <- Peers].

downs(Peers) ->
    [{node_of(P), E} || P <- Peers, {nodedown, _, _} = E <- chatter_work:events(P)].

%% What a node has been told since `formed`.
seen(Peer) ->
    Events = [{What, Node} || {What, Node, _} <- chatter_work:events(Peer)],
    {_Ups, Since} = lists:split(?NODES - 1, Events),
    Since.

pause(Ms) -> receive after Ms -> ok end.
