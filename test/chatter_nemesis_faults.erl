%% Plays one fault on the running nodes of the nemesis, and returns when its effect is over: the
%% node is connected to all others again, the link is up at both ends.
-module(chatter_nemesis_faults).

-export([play/3, start/2, work/2, await_whole/2, snapshots/1, call/4, call/5]).

-export_type([run/0]).

%% The table is public and has
%%   {{peer, I}, Peer, Life}       the node that runs, and how often it was started
%%   {{away, I}, killed | stopped} it cannot be asked now
%%   {{window, Ref}, Window}       of chatter_nemesis_check
%%   {{report, I, Life}, Report}   of a life that is over
%%   {{problem, Ref}, Term}        what counts as a violation of its own
-type run() :: #{table := ets:table(), names := #{pos_integer() => node()},
                 start := fun((pos_integer()) -> chatter_cluster:peer()),
                 lab := chatter_lab:lab() | none, work := chatter_nemesis_node:opts(),
                 links := [chatter_nemesis_plan:link()], hold_ms := pos_integer()}.

-define(WHOLE_MS, 20000).
-define(LINK_MS, 20000).
-define(POLL_MS, 100).
%% A window ends so long after the node is whole: others may be told a little later.
-define(AFTER_MS, 500).
%% Before a node that was stopped beyond the hold is asked whether it is whole, all others have
%% found out that it was.
-define(NOTICED_MS, 1500).

-spec play(run(), chatter_nemesis_plan:fault(), non_neg_integer()) -> ok.
play(Run, {kill, I}, ForMs) ->
    restart(Run, I, ForMs, fun chatter_cluster:kill9/1);
play(Run, {drain, I}, ForMs) ->
    ok = call(Run, I, chatter, drain, [true]),
    restart(Run, I, ForMs, fun(Peer) ->
        ok = chatter_cluster:call(Peer, init, stop, []),
        _ = chatter_work:await_gone(Peer),
        ok = chatter_cluster:stop(Peer)
    end);
play(#{hold_ms := HoldMs} = Run, {stop, I}, ForMs) when ForMs > HoldMs ->
    window(Run, I, stopped, fun() -> _ = stop(Run, I, ForMs), pause(?NOTICED_MS) end);
play(#{hold_ms := HoldMs} = Run, {stop, I}, ForMs) ->
    From = now_ms(),
    case stop(Run, I, ForMs) of
        %% It took longer than it should: this process was held up.
        Took when Took > HoldMs ->
            window(Run, I, stopped, From, fun() -> pause(?NOTICED_MS) end);
        _ -> ok
    end;
play(#{lab := Lab} = Run, {cut, A, B, Ways}, ForMs) ->
    Pairs = case Ways of both -> [{A, B}, {B, A}]; forth -> [{A, B}] end,
    ok = chatter_lab:cut(Lab, Pairs),
    pause(ForMs),
    ok = chatter_lab:heal(Lab, Pairs),
    await_link(Run, A, B);
play(#{lab := Lab} = Run, {reset, A, B}, _) ->
    ok = chatter_lab:reset(Lab, [{A, B}]),
    pause(500), % the next hello carries it
    await_link(Run, A, B);
play(Run, {drop, A, B}, _) ->
    Node = name(Run, B),
    _ = call(Run, A, chatter, disconnect, [Node]),
    ok = call(Run, A, chatter, connect, [Node]),
    await_link(Run, A, B);
play(Run, {sever, A, B}, _) ->
    true = call(Run, A, erlang, disconnect_node, [name(Run, B)]),
    await_whole(Run, A);
play(Run, {delay, A, B, Ms}, ForMs) -> shaped(Run, A, B, [{delay, Ms}], ForMs);
play(Run, {loss, A, B, Percent}, ForMs) -> shaped(Run, A, B, [{loss, Percent}], ForMs);
play(Run, {mess, A, B}, ForMs) ->
    shaped(Run, A, B, [{loss, 3}, {duplicate, 3}, {reorder, 5}], ForMs).

restart(#{table := Table} = Run, I, ForMs, End) ->
    Peer = peer(Run, I),
    Life = life(Run, I),
    window(Run, I, killed, fun() ->
        Report = call(Run, I, chatter_nemesis_node, report),
        true = ets:insert(Table, {{report, I, Life}, until_now(Report)}),
        true = ets:insert(Table, {{away, I}, killed}),
        _ = End(Peer),
        pause(ForMs),
        Again = start(Run, I),
        ok = work(Run, Again),
        true = ets:delete(Table, {away, I})
    end).

shaped(#{lab := Lab} = Run, A, B, Settings, ForMs) ->
    Pairs = chatter_lab:both([{A, B}]),
    ok = chatter_lab:shape(Lab, Pairs, Settings),
    pause(ForMs),
    ok = chatter_lab:heal(Lab, Pairs),
    await_link(Run, A, B).

%% Returns how long it was, in milliseconds.
stop(#{table := Table} = Run, I, ForMs) ->
    Peer = peer(Run, I),
    true = ets:insert(Table, {{away, I}, stopped}),
    From = now_ms(),
    ok = chatter_cluster:freeze(Peer),
    pause(ForMs),
    ok = chatter_cluster:thaw(Peer),
    true = ets:delete(Table, {away, I}),
    now_ms() - From.

window(Run, I, What, Fun) -> window(Run, I, What, now_ms(), Fun).

window(#{table := Table} = Run, I, What, From, Fun) ->
    Key = {window, make_ref()},
    true = ets:insert(Table, {Key, {name(Run, I), What, From, still}}),
    _ = Fun(),
    ok = await_whole(Run, I),
    ok = await_seen(Run, I),
    true = ets:insert(Table, {Key, {name(Run, I), What, From, now_ms() + ?AFTER_MS}}),
    pause(?AFTER_MS).

%% The account of a node that is killed now: what it sends after this does not count.
until_now(#{sent := Sent} = Report) ->
    Now = now_ms(),
    Report#{sent := [case State of
                         open -> {Stream, From, To, Count, {ended, Now, killed}};
                         _ -> S
                     end || {Stream, From, To, Count, State} = S <- Sent, State =/= opening]}.

%% Starts node I; its work begins with work/3.
-spec start(run(), pos_integer()) -> chatter_cluster:peer().
start(#{table := Table, start := Start} = Run, I) ->
    Peer = Start(I),
    true = ets:insert(Table, {{peer, I}, Peer, life(Run, I) + 1}),
    Peer.

-spec work(run(), chatter_cluster:peer()) -> ok.
work(#{work := Work}, Peer) ->
    chatter_cluster:call(Peer, chatter_nemesis_node, start, [Work]).

%% Returns when the node is connected to all others that can be; if not in time, that is a problem.
-spec await_whole(run(), pos_integer()) -> ok.
await_whole(Run, I) ->
    await(Run, {not_whole, I}, ?WHOLE_MS, fun() ->
        Others = maps:values(maps:without([I | nodes_away(Run)], maps:get(names, Run))),
        call(Run, I, chatter_nemesis_node, ready, [Others])
    end).

%% Returns when all others that live are connected to the node too: whoever has accepted a
%% connection may know of it well after the other end when there is no processor to spare, and
%% whoever is stopped when it goes on.
await_seen(Run, I) ->
    Node = name(Run, I),
    await(Run, {not_seen, I}, ?WHOLE_MS, fun() ->
        Others = lists:delete(I, maps:keys(maps:get(names, Run)) -- nodes_away(Run, killed)),
        Stopped = nodes_away(Run, stopped),
        case [J || J <- Others, lists:member(J, Stopped)
                                    orelse not lists:member(Node, call(Run, J, erlang, nodes))] of
            [] -> true;
            Not -> Not
        end
    end).

await_link(Run, A, B) ->
    await(Run, {no_link, A, B}, ?LINK_MS, fun() ->
        case nodes_away(Run) of
            Away when Away =:= [] -> link_up(Run, A, B) andalso link_up(Run, B, A);
            Away -> lists:member(A, Away) orelse lists:member(B, Away)
                        orelse link_up(Run, A, B) andalso link_up(Run, B, A)
        end
    end).

link_up(Run, A, B) -> lists:member(name(Run, B), call(Run, A, chatter, neighbours)).

await(#{table := Table}, What, TimeoutMs, Fun) ->
    try chatter_cluster:wait_until(fun() -> pause(?POLL_MS), Fun() end, TimeoutMs)
    catch error:{timeout, Why} ->
            true = ets:insert(Table, {{problem, make_ref()}, {What, now_ms(), Why}}),
            ok
    end.

%%% ------------------------------------------------------------------------------------
%%% The nodes

peer(#{table := Table}, I) -> ets:lookup_element(Table, {peer, I}, 2).

life(#{table := Table}, I) ->
    case ets:lookup(Table, {peer, I}) of
        [] -> 0;
        [{_, _, Life}] -> Life
    end.

%% What chatter_nemesis_node:snapshot/1 tells, of all nodes that answer: {node, how often started}.
-spec snapshots(run()) -> [{{pos_integer(), pos_integer()}, tuple()}].
snapshots(Run) ->
    Asker = fun(I) ->
                    fun() -> exit({ok, call(Run, I, chatter_nemesis_node, snapshot, [0])}) end
            end,
    Asked = [{Key, spawn_monitor(Asker(I))} || {I, _} = Key <- peers(Run)],
    [{Key, Seen} || {Key, {Pid, Ref}} <- Asked,
                    {ok, Seen} <- [receive {'DOWN', Ref, process, Pid, Reason} -> Reason
                                   after 2000 -> demonitor(Ref, [flush]), no_answer
                                   end]].

%% All nodes that can be asked.
peers(#{table := Table} = Run) ->
    Away = nodes_away(Run),
    All = ets:match_object(Table, {{peer, '_'}, '_', '_'}),
    lists:sort([{I, Life} || {{peer, I}, _, Life} <- All, not lists:member(I, Away)]).

nodes_away(Run) -> nodes_away(Run, '_').

nodes_away(#{table := Table}, Why) ->
    [I || {{away, I}, _} <- ets:match_object(Table, {{away, '_'}, Why})].

-spec call(run(), pos_integer(), module(), atom()) -> term().
call(Run, I, M, F) -> call(Run, I, M, F, []).

-spec call(run(), pos_integer(), module(), atom(), [term()]) -> term().
call(Run, I, M, F, A) -> chatter_cluster:call(peer(Run, I), M, F, A, 15000).

name(#{names := Names}, I) -> maps:get(I, Names).

pause(Ms) -> receive after Ms -> ok end.

now_ms() -> os:system_time(millisecond).
