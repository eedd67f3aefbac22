%% How long failures are felt, as a table with the bar (`make failover`, docs/testing.md).
%%
%% Several groups of nodes are measured at a time, each with nodes of its own in one laboratory:
%%
%%     A --- R1 --- B      gaps: both relays
%%      \--- R2 ---/       nodedown: R1 alone
-module(chatter_failover).

-export([main/0, run/1]).

-export_type([row/0]).

-type row() :: #{what := atom(), n := pos_integer(), p50 := number(), p99 := number(),
                 max := number(), bar := pos_integer(), ok := boolean()}.

-define(SETTLE_MS, 20000).
-define(SPREAD_MS, 300). % so that rounds fall anywhere between two HELLOs
%% How much longer than until the nodedown a partition lasts at most.
-define(LONGEST_MS, 15000).

%% name, text, bar in milliseconds, groups at a time
-define(MEASURES,
        [{relay_killed, "gap after the relay was killed", 100, 2},
         {link_cut, "gap after a link was cut silently", 1300, 4},
         {node_killed, "nodedown, the node was killed", 1000, 2},
         {last_relay_killed, "nodedown, the last relay was killed", 1000, 2},
         {partition, "nodedown, cut off silently", 2000, 4},
         {healed, "nodeup after healing", 2000, 4}]).

-spec main() -> no_return().
main() ->
    Given = maps:from_list([{Key, Value} || Word <- init:get_plain_arguments(),
                                            [Key, Value] <- [string:split(Word, "=")],
                                            Value =/= ""]),
    Number = fun(Key, Default) -> list_to_integer(maps:get(Key, Given, Default)) end,
    Seed = Number("SEED", integer_to_list(erlang:system_time() rem 1000000)),
    Only = [list_to_existing_atom(W) || W <- string:lexemes(maps:get("ONLY", Given, ""), ",")],
    io:format("failover: seed ~b~n", [Seed]),
    case chatter_lab:available() of
        {skip, Why} -> io:format("SKIPPED: ~ts~n", [Why]), halt(0);
        ok ->
            Rows = run(#{rounds => Number("ROUNDS", "200"), seed => Seed, only => Only}),
            halt(case [Row || #{ok := false} = Row <- Rows] of [] -> 0; _ -> 1 end)
    end.

%% only: the measures wanted, [] for all.
-spec run(#{rounds := pos_integer(), seed := non_neg_integer(), only := [atom()]}) -> [row()].
run(#{rounds := Rounds, seed := Seed, only := Only}) ->
    io:format("~n~-38s ~5s ~8s ~8s ~8s ~8s~n", ["ms", "n", "p50", "p99", "max", "bar"]),
    Wanted = [M || {What, _, _, _} = M <- ?MEASURES, What =/= healed,
                   Only =:= [] orelse lists:member(What, Only)],
    lists:append([measure(M, Rounds, Seed) || M <- Wanted]).

measure({What, _, _, Groups}, Rounds, Seed) ->
    Leader = group_leader(),
    {ok, Log} = file:open("_build/failover.log", [append, {encoding, utf8}]),
    true = group_leader(Log, self()), % what the nodes print goes there
    ok = chatter_cluster:new(),
    Lab = chatter_lab:open(#{nodes => 4 * Groups, network => switch, seed => Seed}),
    Each = (Rounds + Groups - 1) div Groups,
    try
        Figures = parallel([fun() ->
                                    _ = rand:seed(exsss, Seed + Group),
                                    group(What, Lab, 4 * (Group - 1), Each)
                            end || Group <- lists:seq(1, Groups)]),
        [show(Leader, Kind, [Ms || {K, Ms} <- lists:append(Figures), K =:= Kind])
         || Kind <- lists:usort([K || {K, _} <- lists:append(Figures)])]
    after
        ok = chatter_cluster:stop_all(),
        ok = chatter_lab:close(Lab),
        true = group_leader(Leader, self()),
        ok = file:close(Log)
    end.

parallel(Funs) ->
    Leader = group_leader(),
    Running = [spawn_monitor(fun() -> true = group_leader(Leader, self()), exit({ok, F()}) end)
               || F <- Funs],
    [receive
         {'DOWN', Ref, process, Pid, {ok, Result}} -> Result;
         {'DOWN', Ref, process, Pid, Reason} -> error(Reason)
     end || {Pid, Ref} <- Running].

show(Leader, Kind, Figures) ->
    {Kind, Text, Bar, _} = lists:keyfind(Kind, 1, ?MEASURES),
    Sorted = list_to_tuple(lists:sort(Figures)),
    N = tuple_size(Sorted),
    At = fun(Share) -> element(max(1, ceil(Share * N)), Sorted) end,
    Ok = At(0.99) =< Bar,
    io:format(Leader, "~-38s ~5b ~8.1f ~8.1f ~8.1f ~8b ~s~n",
              [Text, N, float(At(0.5)), float(At(0.99)), float(At(1)), Bar,
               case Ok of true -> "ok"; false -> "MISSED" end]),
    #{what => Kind, n => N, p50 => At(0.5), p99 => At(0.99), max => At(1), bar => Bar, ok => Ok}.

%%% ------------------------------------------------------------------------------------
%%% Groups: nodes First + 1 (A), + 2 (B), + 3 and + 4 (relays)

group(What, Lab, First, Rounds) when What =:= relay_killed; What =:= link_cut ->
    [A, B, R1, R2] = Places = [First + I || I <- [1, 2, 3, 4]],
    Peers = start_all(Lab, Places, [{A, R1}, {A, R2}, {B, R1}, {B, R2}]),
    #{A := PeerA, B := PeerB} = Peers,
    ok = on(PeerB, sink, []),
    ok = on(PeerA, send_to, [chatter_lab:node_name(B)]),
    chatter_cluster:wait_until(fun() -> on(PeerB, take, []) < 100000 end, ?SETTLE_MS),
    rounds(Rounds, Peers, fun(Now) -> gap(What, Lab, {A, B}, Now) end);
group(What, Lab, First, Rounds) ->
    [A, B, R] = Places = [First + I || I <- [1, 2, 3]],
    Peers = start_all(Lab, Places, [{A, R}, {B, R}]),
    _ = [watching(Peers, I, A, B) || I <- [A, B]],
    rounds(Rounds, Peers, fun(Now) -> down(What, Lab, {A, B, R}, Now) end).

rounds(0, _, _) -> [];
rounds(Left, Peers, Round) ->
    {Figures, Next} = Round(Peers),
    Figures ++ rounds(Left - 1, Next, Round).

start_all(Lab, Places, Links) ->
    Peers = maps:from_list([{I, start(Lab, I, Links)} || I <- Places]),
    ok = chatter_cluster:await_routes(maps:values(Peers), ?SETTLE_MS),
    _ = put(links, Links),
    Peers.

start(Lab, I, Links) ->
    Beside = [chatter_lab:node_name(J) || J <- chatter_nemesis_plan:neighbours(I, Links)],
    chatter_lab:start(Lab, I, #{links => static, neighbours => Beside,
                                args => ["-connect_all", "false"]}).

%% One relay or one link of the way that is in use fails; the figure is the pause that B has.
gap(What, Lab, {A, B}, Peers) ->
    #{B := PeerB} = Peers,
    R = relay_in_use(maps:without([A, B], Peers)),
    pause(rand:uniform(?SPREAD_MS)),
    _ = on(PeerB, take, []),
    {Gap, Next} = fail(What, Lab, {A, B, R}, Peers),
    settled(Next),
    {[{What, Gap / 1000}], Next}.

fail(relay_killed, Lab, {_, B, R}, Peers) ->
    ok = chatter_cluster:kill9(maps:get(R, Peers)),
    pause(700),
    Gap = on(maps:get(B, Peers), take, []),
    {Gap, Peers#{R := start(Lab, R, get(links))}};
fail(link_cut, Lab, {A, B, R}, Peers) ->
    Pairs = chatter_lab:both([{R, case rand:uniform(2) of 1 -> A; 2 -> B end}]),
    ok = chatter_lab:cut(Lab, Pairs),
    pause(2500),
    Gap = on(maps:get(B, Peers), take, []),
    ok = chatter_lab:heal(Lab, Pairs),
    {Gap, Peers}.

%% The one that passes on more: of two equally short ways a channel takes one.
relay_in_use(Relays) ->
    Relayed = fun(Peer) ->
                      Links = chatter_cluster:call(Peer, chatter, links, []),
                      lists:sum([N || #{relayed := N} <- Links])
              end,
    Before = maps:map(fun(_, Peer) -> Relayed(Peer) end, Relays),
    pause(100),
    More = [{Relayed(Peer) - maps:get(I, Before), I} || {I, Peer} <- maps:to_list(Relays)],
    element(2, lists:max(More)).

%% All links are there again, and have been for a moment.
settled(Peers) ->
    Links = get(links),
    chatter_cluster:wait_until(
      fun() ->
              [] =:= [I || {I, Peer} <- maps:to_list(Peers),
                           Beside <- [chatter_nemesis_plan:neighbours(I, Links)],
                           length(chatter_cluster:call(Peer, chatter, neighbours, []))
                               =/= length(Beside)]
      end, ?SETTLE_MS),
    pause(400).

%% A and B have no route left; the figures are how long until each that lives is told.
down(node_killed, Lab, {A, B, _}, Peers) ->
    connected(Peers, A, B),
    #{A := PeerA, B := PeerB} = Peers,
    pause(rand:uniform(?SPREAD_MS)),
    Began = now_ms(),
    ok = chatter_cluster:kill9(PeerB),
    Told = told(PeerA, nodedown, B, Began),
    Next = Peers#{B := start(Lab, B, get(links))},
    watching(Next, B, A, B),
    settled(Next),
    {[{node_killed, Told - Began}], Next};
down(last_relay_killed, Lab, {A, B, R}, Peers) ->
    connected(Peers, A, B),
    #{A := PeerA, B := PeerB, R := PeerR} = Peers,
    pause(rand:uniform(?SPREAD_MS)),
    Began = now_ms(),
    ok = chatter_cluster:kill9(PeerR),
    Told = max(told(PeerA, nodedown, B, Began), told(PeerB, nodedown, A, Began)),
    Next = Peers#{R := start(Lab, R, get(links))},
    settled(Next),
    {[{last_relay_killed, Told - Began}], Next};
down(partition, Lab, {A, B, R}, Peers) ->
    connected(Peers, A, B),
    #{A := PeerA, B := PeerB} = Peers,
    Pairs = chatter_lab:both([{R, case rand:uniform(2) of 1 -> A; 2 -> B end}]),
    pause(rand:uniform(?SPREAD_MS)),
    Began = now_ms(),
    ok = chatter_lab:cut(Lab, Pairs),
    Told = max(told(PeerA, nodedown, B, Began), told(PeerB, nodedown, A, Began)),
    pause(round(?LONGEST_MS * math:pow(rand:uniform(), 3))), % half of them under 2 s
    Healed = now_ms(),
    ok = chatter_lab:heal(Lab, Pairs),
    Again = max(told(PeerA, nodeup, B, Healed), told(PeerB, nodeup, A, Healed)),
    settled(Peers),
    {[{partition, Told - Began}, {healed, Again - Healed}], Peers}.

watching(Peers, I, A, B) ->
    Peer = maps:get(I, Peers),
    ok = on(Peer, watch, []),
    ok = on(Peer, keep_connected, [[chatter_lab:node_name(J) || J <- [A, B], J =/= I]]).

connected(Peers, A, B) ->
    chatter_cluster:wait_until(
      fun() ->
              lists:all(fun({I, J}) ->
                                lists:member(chatter_lab:node_name(J),
                                             chatter_cluster:call(maps:get(I, Peers), erlang,
                                                                  nodes, []))
                        end, [{A, B}, {B, A}])
      end, ?SETTLE_MS).

told(Peer, What, I, Since) ->
    Node = chatter_lab:node_name(I),
    chatter_cluster:wait_until(
      fun() ->
              case [Ms || {W, N, Ms} <- on(Peer, events_since, [Since]), W =:= What, N =:= Node] of
                  [Ms | _] -> {ok, Ms};
                  [] -> not_yet
              end
      end, ?SETTLE_MS).

on(Peer, Function, Args) -> chatter_cluster:call(Peer, chatter_failover_node, Function, Args).

pause(Ms) -> receive after Ms -> ok end.

now_ms() -> os:system_time(millisecond).
