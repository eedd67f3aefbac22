%% Nodes that are in groups, in one process and in virtual time: chatter_group_core around a network
%% that delays, repeats, loses and cuts. What happens follows from the calls and the seed alone.
%%
%% Next to the nodes stands a *model*: what each of them has said since it was last started, kept in
%% the plainest way and without any of the code under test.
-module(chatter_group_world).

-export([new/2, new/3, command/3, restart/3, partition/2, heal/1, settle/3, run/2, replay/2,
         lose/2, kill/2, start/2]).
-export([now/1, ids/1, core/2, model/1, seen/2, equal/1, differences/1, is_empty/1, footprint/1,
         bytes_to/2]).

-export_type([world/0]).

-record(world, {
    now = 0 :: integer(),
    options :: map(),
    cores = #{} :: #{binary() => term()},
    %% Which side of the network a node is on.
    side = #{} :: #{binary() => integer()},
    incs = #{} :: #{binary() => pos_integer()},
    %% What is under way: {At, N, To, Bytes}.
    wire = gb_sets:new() :: gb_sets:set(),
    sent = 0 :: non_neg_integer(),
    posted = 0 :: non_neg_integer(),
    %% The last of what was sent, for it to be sent again.
    past = #{} :: #{non_neg_integer() => {binary(), binary()}},
    model = #{} :: #{binary() => #{binary() => {boolean(), map()}}},
    %% Out of 1000 messages, so many are lost, and so many come twice.
    loss = {0, 0},
    bytes = #{} :: #{binary() => non_neg_integer()},
    random :: rand:state()
}).
-opaque world() :: #world{}.

-define(KEPT, 2000).
%% A message takes up to so long.
-define(LATENCY_MS, 20).
%% How long until the network has given a node up.
-define(DETECT_MS, 1500).

options() ->
    #{leave_ms => 5000, forget_ms => 3600000, collect_ms => 60000, sync_ms => 1000,
      max_nodes => 4096, max_groups => 1024, max_members => 4096, max_items => 1024,
      max_name => 255}.

new(Ids, Seed) -> new(Ids, Seed, #{}).

new(Ids, Seed, Options) ->
    World = #world{options = maps:merge(options(), Options), random = rand:seed_s(exsss, Seed)},
    lists:foldl(fun start/2, World, Ids).

%% Starts a node, in a later life than its last.
start(Id, #world{incs = Incs} = World) ->
    born(Id, maps:get(Id, Incs, 0) + 1, World#world{side = (World#world.side)#{Id => 0}}).

born(Id, Inc, #world{cores = Cores, now = Now, incs = Incs, model = Model} = World) ->
    {Seed, World1} = draw(1000000, World),
    <<A, B, C, _/binary>> = erlang:md5(Id),
    Core = chatter_group_core:new({Id, Inc}, {net_id, {10, A, B, C}, 29999},
                                  World#world.options, Seed, Now),
    World2 = World1#world{cores = Cores#{Id => Core}, incs = Incs#{Id => Inc},
                          model = Model#{Id => #{}}},
    meet([{Id, Other} || Other <- beside(Id, World2)], World2).

%% The nodes that a node can reach.
beside(Id, #world{side = Side, cores = Cores}) ->
    [Other || Other <- maps:keys(Cores), Other =/= Id,
              maps:get(Other, Side) =:= maps:get(Id, Side)].

meet(Pairs, World) ->
    lists:foldl(fun({A, B}, W) -> up(A, B, up(B, A, W)) end, World, Pairs).

up(Id, Peer, World) -> on(Id, fun(Now, C) -> chatter_group_core:peer_up(Peer, Now, C) end, World).

down(Id, Peer, World) ->
    on(Id, fun(Now, C) -> chatter_group_core:peer_down(Peer, Now, C) end, World).

%% A command of a user, which both the node and the model carry out if it is not refused.
command(Id, Command, #world{cores = Cores, now = Now, model = Model} = World) ->
    case chatter_group_core:command(Command, Now, maps:get(Id, Cores)) of
        {ok, Written, Core, Effects} ->
            Of = model_of(Command, maps:get(Id, Model)),
            {{ok, Written}, carry_out(Effects, World#world{cores = Cores#{Id => Core},
                                                           model = Model#{Id => Of}})};
        {error, _} = Error -> {Error, World}
    end.

model_of({join, Group, node}, Of) ->
    {_, Items} = maps:get(Group, Of, {false, #{}}),
    Of#{Group => {true, Items}};
model_of({leave, Group, node}, Of) -> maps:remove(Group, Of);
model_of({add_item, Group, From, To, Port}, Of) ->
    {_, Items} = maps:get(Group, Of, {true, #{}}),
    Of#{Group => {true, Items#{{From, To} => Port}}};
model_of({remove_item, Group, From, To, _}, Of) ->
    {true, Items} = maps:get(Group, Of),
    Of#{Group => {true, maps:remove({From, To}, Items)}};
%% What the model does not show: interests, processes, groups in groups.
model_of(_, Of) -> Of.

%% A node stops and is there again at once, in a life with a number that is greater by `Step': 0 is
%% a clock that has not moved on.
restart(Id, Step, #world{incs = Incs} = World) ->
    Others = beside(Id, World),
    Gone = lists:foldl(fun(Other, W) -> down(Other, Id, W) end, World, Others),
    born(Id, maps:get(Id, Incs) + Step, Gone).

%% A node is killed, and in time given up by those that could reach it.
kill(Id, #world{cores = Cores, model = Model} = World) ->
    Others = beside(Id, World),
    Killed = World#world{cores = maps:remove(Id, Cores), model = maps:remove(Id, Model)},
    lists:foldl(fun(Other, W) -> down(Other, Id, W) end, run(?DETECT_MS, Killed), Others).

%% The network falls apart: nodes of another side are lost to each other.
partition(Sides, #world{side = Former} = World) ->
    Side = maps:merge(Former, Sides),
    World1 = World#world{side = Side},
    lists:foldl(
      fun({A, B}, W) ->
              case {maps:get(A, Former) =:= maps:get(B, Former),
                    maps:get(A, Side) =:= maps:get(B, Side)} of
                  {true, false} -> down(A, B, W);
                  {false, true} -> up(A, B, W);
                  _ -> W
              end
      end, World1, [{A, B} || A <- ids(World), B <- ids(World), A =/= B]).

heal(World) -> partition(maps:from_list([{Id, 0} || Id <- ids(World)]), World).

%% From now on so many out of 1000 messages are lost, and so many come twice.
lose(Loss, World) -> World#world{loss = Loss}.

%% Sends some of all that was ever sent again, in any order.
replay(Count, #world{past = Past} = World) ->
    lists:foldl(fun(_, W) when map_size(Past) =:= 0 -> W;
                   (_, W) ->
                        {Draw, W1} = draw(map_size(Past), W),
                        {To, Bytes} = maps:get(Draw - 1, Past),
                        post(To, Bytes, W1)
                end, World, lists:seq(1, Count)).

%% Lets time go by.
run(Ms, #world{now = Now} = World) -> run_until(Now + Ms, World).

run_until(End, #world{cores = Cores, wire = Wire} = World) ->
    {Timer, Id} = case [{chatter_group_core:next(C), I} || {I, C} <- maps:to_list(Cores)] of
                      [] -> {End + 1, none};
                      Timers -> lists:min(Timers)
                  end,
    Message = case gb_sets:is_empty(Wire) of
                  true -> End + 1;
                  false -> element(1, gb_sets:smallest(Wire))
              end,
    if Timer > End, Message > End -> World#world{now = End};
       Message =< Timer ->
            {{At, _, To, Bytes}, Wire1} = gb_sets:take_smallest(Wire),
            run_until(End, deliver(To, Bytes, World#world{wire = Wire1,
                                                          now = max(At, World#world.now)}));
       true ->
            World1 = World#world{now = max(Timer, World#world.now)},
            run_until(End, on(Id, fun chatter_group_core:tick/2, World1))
    end.

deliver(To, Bytes, #world{cores = Cores, bytes = Counts} = World) when is_map_key(To, Cores) ->
    Counts1 = Counts#{To => byte_size(Bytes) + maps:get(To, Counts, 0)},
    on(To, fun(Now, C) -> chatter_group_core:message(Bytes, Now, C) end,
       World#world{bytes = Counts1});
deliver(_, _, World) -> World.

on(Id, Do, #world{cores = Cores, now = Now} = World) ->
    {Core, Effects} = Do(Now, maps:get(Id, Cores)),
    carry_out(Id, Effects, World#world{cores = Cores#{Id => Core}}).

carry_out(Effects, World) -> carry_out(none, Effects, World).

carry_out(From, [{send, Ids, Bytes} | Effects], World) ->
    carry_out(From, Effects, lists:foldl(fun(To, W) -> send(From, To, Bytes, W) end, World, Ids));
carry_out(From, [{event, _, _} | Effects], World) -> carry_out(From, Effects, World);
carry_out(_, [], World) -> World.

send(From, To, Bytes, #world{side = Side, loss = {Lost, Twice}} = World) ->
    case maps:get(From, Side) =:= maps:get(To, Side, none) of
        false -> World;
        true ->
            {Draw, World1} = draw(1000, World),
            World2 = remember(To, Bytes, World1),
            if Draw =< Lost -> World2;
               Draw =< Lost + Twice -> post(To, Bytes, post(To, Bytes, World2));
               true -> post(To, Bytes, World2)
            end
    end.

remember(To, Bytes, #world{past = Past, posted = N} = World) ->
    World#world{past = Past#{N rem ?KEPT => {To, Bytes}}, posted = N + 1}.

%% Messages overtake each other.
post(To, Bytes, #world{now = Now, wire = Wire, sent = Sent} = World) ->
    {Delay, World1} = draw(?LATENCY_MS, World),
    World1#world{wire = gb_sets:add({Now + Delay, Sent, To, Bytes}, Wire), sent = Sent + 1}.

draw(Max, #world{random = Random} = World) ->
    {Draw, Random1} = rand:uniform_s(Max, Random),
    {Draw, World#world{random = Random1}}.

%% Lets time go by, `Step' at a time, until all nodes see what the model says: after how long, or
%% `never' within the limit.
settle(Step, Limit, World) -> settle(0, Step, Limit, World).

settle(Passed, Step, Limit, World) ->
    case equal(World) of
        true -> {Passed, World};
        false when Passed >= Limit -> {never, World};
        false -> settle(Passed + Step, Step, Limit, run(Step, World))
    end.

%%% What is there

now(#world{now = Now}) -> Now.

ids(#world{cores = Cores}) -> maps:keys(Cores).

core(Id, #world{cores = Cores}) -> maps:get(Id, Cores).

%% The bytes of all messages that a node has been sent.
bytes_to(Id, #world{bytes = Bytes}) -> maps:get(Id, Bytes, 0).

%% What there is to be seen: of each group its members, and each range with who serves it where.
model(#world{model = Model}) ->
    Said = [{Group, Id, Items} || {Id, Of} <- maps:to_list(Model),
                                  {Group, {true, Items}} <- maps:to_list(Of)],
    maps:from_list([{Group, {lists:sort([Id || {G, Id, _} <- Said, G =:= Group]),
                             lists:sort([{Id, Range, Port} || {G, Id, Items} <- Said, G =:= Group,
                                                              {Range, Port} <- maps:to_list(Items)])
                            }}
                    || Group <- lists:usort([G || {G, _, _} <- Said])]).

seen(Id, #world{cores = Cores}) ->
    View = chatter_group_core:view(maps:get(Id, Cores)),
    maps:from_list([{Group, {chatter_group_view:members(Group, View),
                             lists:sort(chatter_group_view:serving(Group, View))}}
                    || Group <- chatter_group_view:groups(View)]).

equal(World) ->
    Model = model(World),
    lists:all(fun(Id) -> seen(Id, World) =:= expected(Id, Model, World) end, ids(World)).

differences(World) ->
    Model = model(World),
    [{Id, [{should, expected(Id, Model, World)}, {is, seen(Id, World)}]}
     || Id <- ids(World), seen(Id, World) =/= expected(Id, Model, World)].

%% Who wants less than all sees less, but always what it has said itself.
expected(Id, Model, #world{cores = Cores}) ->
    case chatter_group_core:interests(maps:get(Id, Cores)) of
        [] -> Model;
        Interests ->
            maps:map(fun(Group, {Members, Items}) ->
                             {Members, [Item || {Of, Range, _} = Item <- Items,
                                                Of =:= Id orelse wants(Group, Range, Interests)]}
                     end, Model)
    end.

wants(Group, {From, To}, Interests) ->
    case lists:keyfind(Group, 1, Interests) of
        {_, Ranges} ->
            lists:any(fun({First, Last}) -> From =< Last andalso First =< To end, Ranges);
        false -> true
    end.

%% Nobody keeps anything of any group, dead or alive.
is_empty(World) ->
    lists:all(fun(Id) ->
                      State = chatter_group_core:state(core(Id, World)),
                      [] =:= lists:append([chatter_group_state:groups_of(Of, State)
                                           || Of <- chatter_group_state:ids(State)])
              end, ids(World)).

%% Of each node: {bytes in memory of what it knows, nodes it knows, live entries}.
footprint(World) ->
    [begin
         State = chatter_group_core:state(core(Id, World)),
         Known = chatter_group_state:ids(State),
         Live = lists:sum([chatter_group_state:count(Of, Group, State)
                           || Of <- Known, Group <- chatter_group_state:groups_of(Of, State)]),
         {erts_debug:flat_size(State) * erlang:system_info(wordsize), length(Known), Live}
     end || Id <- ids(World)].
