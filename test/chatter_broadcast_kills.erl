%% Broadcasts of which a node in the middle of the tree is killed while they are on their way.
%%
%% Eight real nodes, all linked with each other (`mesh') or with three each (`cube'). A round:
%% somebody broadcasts; a node that has others behind it in the tree is killed with SIGKILL; all
%% others must get the message, once. Then the node is started again, and the next round begins when
%% the network is whole. Who is in the middle is seen from who passes on a broadcast of the same
%% origin just before.
%%
%% When the node dies:
%%
%%   frozen   it was stopped before the message was sent: what came stays in its sockets
%%   holding  it has the message and has not passed it on, since its handler has not returned
%%   running  as soon as the message is sent, by a shell that waits for that. Messages are of up to
%%            1 MiB here, so that it takes a while to pass them on
%%
%% Origins, victims, sizes and pauses come from a seed; clocks and threads are real.
-module(chatter_broadcast_kills).

-export([run/3]).

-import(chatter_work, [on/2]).
-import(chatter_cluster, [wait_until/2]).

-type result() :: #{way := frozen | holding | running, origin := pos_integer(),
                    victim := pos_integer(), size := non_neg_integer(),
                    late_ms := float(), replanned := non_neg_integer()}.
%% late_ms: from just before the broadcast until the last one had it. replanned: packets that were
%% sent anew for it.

-define(NODES, 8).
-define(COLLECTOR, chatter_broadcast_kills).
-define(TIMEOUT_MS, 20000).

%% So many rounds, each with what came of it. Fails when a message is missing somewhere, or comes
%% again.
-spec run(mesh | cube, pos_integer(), integer()) -> [result()].
run(Shape, Rounds, Seed) ->
    _ = rand:seed(exsss, Seed),
    ok = chatter_cluster:new(),
    Nodes = maps:from_list([{I, start(I, Shape)} || I <- lists:seq(1, ?NODES)]),
    whole(Nodes, Shape),
    {Results, _} = lists:mapfoldl(fun(Round, Now) -> round(Round, Shape, Now) end, Nodes,
                                  lists:seq(1, Rounds)),
    ok = chatter_cluster:stop_all(),
    Results.

round(Round, Shape, Nodes) ->
    Origin = rand:uniform(?NODES),
    Middle = in_the_middle(Origin, Nodes),
    Victim = lists:nth(rand:uniform(length(Middle)), Middle),
    Way = lists:nth(Round rem 3 + 1, [running, frozen, holding]),
    Size = case Way of
               running -> rand:uniform(1 bsl rand:uniform(20));
               _ -> rand:uniform(100)
           end,
    Others = maps:without([Origin, Victim], Nodes),
    Before = replanned(maps:remove(Victim, Nodes)),
    Sent = kill(Way, Round, Size, maps:get(Origin, Nodes), maps:get(Victim, Nodes)),
    Arrived = [arrived(I, Round, Node) || {I, Node} <- maps:to_list(Others)],
    Replanned = replanned(maps:remove(Victim, Nodes)) - Before,
    Next = Nodes#{Victim := start(Victim, Shape)},
    whole(Next, Shape),
    [once(I, Round, Node) || {I, Node} <- maps:to_list(Others)],
    %% It was meant for the life before.
    [] = of_round(Round, maps:get(Victim, Next)),
    Late = (lists:max(Arrived) - Sent) / 1000,
    {#{way => Way, origin => Origin, victim => Victim, size => Size, late_ms => Late,
       replanned => Replanned}, Next}.

%% Has Origin broadcast while Victim dies. When it was sent, in microseconds.
kill(frozen, Round, Size, Origin, Victim) ->
    ok = chatter_cluster:freeze(Victim),
    Sent = send(Origin, Round, Size),
    timer:sleep(rand:uniform(20)),
    ok = chatter_cluster:kill9(Victim),
    Sent;
kill(holding, Round, Size, Origin, Victim) ->
    Hold = fun(_) -> persistent_term:put(?MODULE, holding), timer:sleep(60000) end,
    ok = on(Victim, fun() -> chatter:add_handler(#{type => of_kills, dispatch => Hold}) end),
    Sent = send(Origin, Round, Size),
    Holds = fun() -> persistent_term:get(?MODULE, no) =:= holding end,
    wait_until(fun() -> on(Victim, Holds) end, ?TIMEOUT_MS),
    ok = chatter_cluster:kill9(Victim),
    Sent;
kill(running, Round, Size, Origin, Victim) ->
    Pid = chatter_cluster:os_pid(Victim),
    Sent = on(Origin, fun() ->
                              Do = "echo; read x; kill -9 " ++ Pid ++ " 2>&1",
                              Sh = open_port({spawn_executable, "/bin/sh"}, [{args, ["-c", Do]}]),
                              receive {Sh, {data, _}} -> ok end,
                              At = broadcast(Round, Size),
                              true = port_command(Sh, "now\n"),
                              At
                      end),
    ok = chatter_cluster:kill9(Victim),
    Sent.

send(Origin, Round, Size) -> on(Origin, fun() -> broadcast(Round, Size) end).

%% Runs on the origin.
broadcast(Round, Size) ->
    Body = rand:bytes(Size),
    Sum = erlang:md5(Body),
    At = os:system_time(microsecond),
    ok = chatter:broadcast(all, {of_kills, Round, Sum, Body}),
    At.

%% Those who pass on a broadcast of this node. There are as many sends as receivers when nothing
%% else happens; else again.
in_the_middle(Origin, Nodes) ->
    wait_until(
      fun() ->
              Before = maps:map(fun(_, Node) -> sends(Node) end, Nodes),
              From = maps:get(Origin, Nodes),
              ok = on(From, fun() -> chatter:broadcast(all, {of_nobody, 1}) end),
              wait_until(fun() -> maps:get(own_bytes, figures(From)) =:= 0 end, ?TIMEOUT_MS),
              Sends = maps:map(fun(I, Node) -> sends(Node) - maps:get(I, Before) end, Nodes),
              case lists:sum(maps:values(Sends)) of
                  ?NODES - 1 -> {ok, [I || {I, N} <- maps:to_list(Sends), N > 0, I =/= Origin]};
                  _ -> Sends
              end
      end, ?TIMEOUT_MS).

sends(Node) -> maps:get(tree_packets, figures(Node)).

replanned(Nodes) -> lists:sum([maps:get(replanned, figures(N)) || N <- maps:values(Nodes)]).

figures(Node) -> on(Node, fun() -> maps:get(broadcast, chatter:info()) end).

%% When the message of a round was there, in microseconds.
arrived(I, Round, Node) ->
    wait_until(fun() ->
                       case of_round(Round, Node) of
                           [{At, true} | _] -> {ok, At};
                           Other -> {node, I, round, Round, Other, figures(Node)}
                       end
               end, ?TIMEOUT_MS).

once(I, Round, Node) ->
    case of_round(Round, Node) of
        [{_, true}] -> ok;
        Other -> error({not_once, #{node => I, round => Round, got => Other}})
    end.

of_round(Round, Node) -> [{At, Whole} || {R, At, Whole} <- collected(Node), R =:= Round].

collected(Node) ->
    on(Node, fun() ->
                     ?COLLECTOR ! {collected, self()},
                     receive {collected, All} -> All end
             end).

%%% Nodes

neighbours(I, mesh) -> lists:seq(1, ?NODES) -- [I];
neighbours(I, cube) -> [((I - 1) bxor Bit) + 1 || Bit <- [1, 2, 4]].

name(I) -> list_to_atom("k" ++ integer_to_list(I)).

%% Groups are kept by broadcasts too: without them.
start(I, Shape) ->
    Neighbours = [name(J) || J <- neighbours(I, Shape)],
    Node = chatter_work:start(name(I), #{links => static, neighbours => Neighbours}),
    on(Node, fun() ->
                     ok = supervisor:terminate_child(chatter_dist_sup, chatter_group_srv),
                     Self = self(),
                     Pid = spawn(fun() ->
                                         ok = chatter:subscribe(of_kills, 1000000),
                                         Self ! ready,
                                         collect([])
                                 end),
                     true = register(?COLLECTOR, Pid),
                     receive ready -> ok end
             end),
    Node.

collect(All) ->
    receive
        {chatter_broadcast, _, {of_kills, Round, Sum, Body}} ->
            At = os:system_time(microsecond),
            collect([{Round, At, erlang:md5(Body) =:= Sum} | All]);
        {collected, To} ->
            To ! {collected, lists:reverse(All)},
            collect(All)
    end.

%% All links are there, and all routes.
whole(Nodes, Shape) ->
    [wait_until(fun() ->
                        Has = on(Node, fun() -> length(chatter:neighbours()) end),
                        Has =:= length(neighbours(I, Shape)) orelse {node, I, Has}
                end, ?TIMEOUT_MS) || {I, Node} <- maps:to_list(Nodes)],
    chatter_cluster:await_routes(maps:values(Nodes), ?TIMEOUT_MS).
