%% SPDX-License-Identifier: Apache-2.0
%% @doc One node's part in groups, as pure transitions: commands, messages, nodes that come and go,
%% and time go in; the new state and the effects come out. No process, no clock: `Now' is in
%% milliseconds of any clock that does not go back.
%%
%% Effects, in the order in which they are to be carried out:
%%
%%   `{send, Nodes, Bytes}'    to each of these nodes
%%   `{event, Group, Event}'   to those who follow the group
%%
%% Whoever drives this calls tick/2 when next/1 says so.
%%
%% What chatter_group_replica keeps is the same everywhere in the end. Kept here is what is this
%% node's own: which nodes the network has, who follows what, what is to be sent, and when.
-module(chatter_group_core).

-export([new/5, command/3, message/3, peer_up/3, peer_down/3, net_id/3, watch/2, tick/2, next/1]).
-export([id/1, state/1, view/1, interests/1, my_groups/1, processes/1, processes/2, held_by/2]).
-export([statement/2, saved/2, restore/3, info/1]).

-export_type([core/0, effect/0, options/0, saved/0]).

-type id() :: chatter_group_wire:id().
-type name() :: chatter_group_wire:name().
-type ms() :: integer().
-type options() :: #{leave_ms := non_neg_integer(), forget_ms := pos_integer(),
                     collect_ms := pos_integer(), sync_ms := pos_integer(),
                     max_nodes := pos_integer(), max_groups := pos_integer(),
                     max_members := pos_integer(), max_items := pos_integer(),
                     max_name := pos_integer()}.
-type effect() :: {send, [id()], binary()} | {event, name(), chatter_group_view:event()}.
-type result() :: {core(), [effect()]}.
-type written() :: [{chatter_group_wire:key(), chatter_group_wire:entry()}].
-type saved() :: {chatter_group_rules:holders(),
                  [{chatter_group_wire:key(), chatter_group_wire:value()}]}.
-type timer() :: flush | fresh | leave | sync | collect.

-record(core, {
    replica :: chatter_group_replica:replica(),
    options :: options(),
    %% Every other node that the network has or that something is known of.
    peers = #{} :: #{id() => up | {down | gone, Since :: ms()}},
    %% Why this node is a member.
    holders = #{} :: #{name() => chatter_group_rules:holders()},
    watched = #{} :: #{name() => true},
    %% Who has heard of this life, and who is still to.
    greeted = #{} :: #{id() => told | waiting},
    %% Nodes that have come of late.
    fresh = [] :: [id()],
    %% Who is still to be compared with in this round.
    round = [] :: [id()],
    timers = #{} :: #{timer() => ms()},
    random :: rand:state(),
    counts = #{} :: #{atom() => non_neg_integer()}
}).
-opaque core() :: #core{}.

%% Changes gather for so long before they are told.
-define(FLUSH_MS, 10).
%% Nodes that come together are looked at together.
-define(FRESH_MS, 100).
%% So many nodes compare what they know with one that has come.
-define(FRESH_SYNCS, 3).

%% @doc This node, in a life that none before it has had the number of. `Seed' is for jitter.
-spec new({id(), chatter_group_wire:counter()}, chatter_group_wire:net_id(), options(), integer(),
          ms()) -> core().
new({Id, Inc}, NetId, Options, Seed, Now) ->
    Core = #core{replica = chatter_group_replica:new(Id, Inc, NetId), options = Options,
                 random = rand:seed_s(exsss, Seed)},
    again(collect, Now, again(sync, Now, Core)).

%%% ---------------------------------------------------------------------------------------------
%%% What this node says about itself

%% @doc Carries out a command of a user. The entries are those that were written. A refused command
%% changes nothing.
-spec command(chatter_group_rules:command(), ms(), core()) ->
          {ok, written(), core(), [effect()]} | {error, chatter_group_rules:reason()}.
command(Command, Now, #core{options = Options, holders = Holders} = Core) ->
    Group = element(2, Command),
    Of = maps:get(Group, Holders, #{}),
    case chatter_group_rules:plan(Command, Of, {id(Core), view(Core), Options}) of
        {ok, Of1, Writes} ->
            Core1 = Core#core{holders = hold(Group, Of1, Holders)},
            {Core2, Effects} = write(Group, Writes, Now, Core1),
            Core3 = case element(1, Command) of
                        interest -> interested(Group, Now, Core2);
                        _ -> Core2
                    end,
            {ok, [{Key, entry(Group, Key, Core3)} || {Key, _} <- Writes], Core3, Effects};
        {error, _} = Error -> Error
    end.

hold(Group, Of, Holders) when map_size(Of) =:= 0 -> maps:remove(Group, Holders);
hold(Group, Of, Holders) -> Holders#{Group => Of}.

entry(Group, Key, Core) -> chatter_group_state:entry(id(Core), Group, Key, state(Core)).

%% The clock of a group is one more than this node has had there; all entries of one command have
%% the same.
write(_, [], _, Core) -> {Core, []};
write(Group, Writes, Now, #core{replica = Replica} = Core) ->
    Entries = maps:values(chatter_group_state:entries(id(Core), Group, state(Core))),
    Clock = lists:max([-1 | [Last || {_, Last, _} <- Entries]]) + 1,
    {Replica1, Changes} = chatter_group_replica:write(Group, clocks(Writes, Clock), Now, Replica),
    {flush_soon(Now, Core#core{replica = Replica1}), events(Changes, Core)}.

%% Who joins by adding an item says two things, one after the other.
clocks([{get, {live, _} = Get}, {{add, _, _} = Key, {live, _} = Item}], Clock) ->
    [{get, Clock, Get}, {Key, Clock + 1, Item}];
clocks(Writes, Clock) -> [{Key, Clock, Value} || {Key, Value} <- Writes].

%% What is not wanted any more is forgotten, and what is wanted now is fetched.
interested(Group, Now, #core{replica = Replica} = Core) ->
    Kept = chatter_group_replica:keep({Group, interests(Core)}, Replica),
    earliest(sync, Now + ?FLUSH_MS, Core#core{replica = Kept}).

%% @doc The address of this node is known, or is another.
-spec net_id(chatter_group_wire:net_id(), ms(), core()) -> core().
net_id(NetId, Now, #core{replica = Replica, greeted = Greeted} = Core) ->
    case chatter_group_replica:life(Replica) of
        {_, NetId} -> Core;
        {Inc, Former} ->
            %% In one life an address is only added.
            Next = case Former of none -> Inc; _ -> Inc + 1 end,
            Core1 = Core#core{replica = chatter_group_replica:renew(Next, NetId, Replica),
                              greeted = maps:map(fun(_, _) -> waiting end, Greeted)},
            earliest(flush, Now + ?FLUSH_MS, Core1)
    end.

%% @doc What has to be kept of a group for this node to say it again, with restore/3, in a later
%% life.
-spec saved(name(), core()) -> saved().
saved(Group, #core{holders = Holders} = Core) ->
    Entries = chatter_group_state:entries(id(Core), Group, state(Core)),
    {maps:get(Group, Holders, #{}),
     [{Key, Value} || {Key, {_, _, {live, _} = Value}} <- maps:to_list(Entries)]}.

%% @doc Says again what an earlier life of this process has said.
-spec restore([{name(), saved()}], ms(), core()) -> core().
restore(Saved, Now, Core) ->
    lists:foldl(fun({Group, {Of, Writes}}, #core{holders = Holders} = Acc) ->
                        {Acc1, _} = write(Group, Writes, Now,
                                          Acc#core{holders = hold(Group, Of, Holders)}),
                        Acc1
                end, Core, Saved).

%%% ---------------------------------------------------------------------------------------------
%%% What others say

%% @doc Takes in a message. One that is malformed, or of another version, is counted and dropped.
-spec message(binary(), ms(), core()) -> result().
message(Bytes, Now, Core) ->
    Id = id(Core),
    case chatter_group_wire:decode(Bytes) of
        {ok, Message} when element(2, Message) =:= Id -> {Core, []};
        {ok, Message} ->
            heard(Message, Now, count(received_bytes, byte_size(Bytes), count(received, 1, Core)));
        {error, _} -> {count(refused, 1, Core), []}
    end.

heard({digest, From, Theirs, Supposed, Root, Buckets}, _, Core) ->
    Scope = scope(From, Theirs, Core),
    Ids = shared(Core),
    Digest = case chatter_group_wire:ranges_hash(interests(Core)) of
                 Supposed -> {Root, Buckets};
                 _ -> unknown
             end,
    Mine = chatter_group_sync:digest(Ids, Scope, state(Core)),
    case chatter_group_sync:differing(Digest, Mine) of
        none -> {Core, []};
        Mask ->
            Nodes = chatter_group_sync:nodes(Ids, Mask, Scope, state(Core)),
            send([From], {nodes, id(Core), interests(Core), Mask, Nodes}, Core)
    end;
heard({nodes, From, Theirs, Mask, Nodes}, _, Core) ->
    Scope = scope(From, Theirs, Core),
    {Lives, Wants} = chatter_group_sync:compare(shared(Core), {Mask, Nodes}, Scope, state(Core)),
    send_lives([From], Lives, {Wants, true}, Core);
heard({lives, From, Theirs, Lives, Wants, Answer}, Now, #core{replica = Replica} = Core) ->
    Welcome = welcome(Lives, Core),
    {Replica1, Changes, Losers} =
        chatter_group_replica:merge(Welcome, interests(Core), Now, Replica),
    Core1 = flush_soon(Now, acquaint(Welcome, Now, Core#core{replica = Replica1})),
    Events = events(Changes, Core1),
    {Core2, Replies} = case Answer of
                           true -> answer(From, Theirs, {Wants, Losers}, Core1);
                           false -> {Core1, []}
                       end,
    {Core2, Events ++ Replies}.

%% What was asked for, and what is known better here. Entries that are newer, dead ones too, go
%% back until both sides know the same.
answer(From, Theirs, {Wants, Losers}, Core) ->
    State = state(Core),
    Scope = scope(From, Theirs, Core),
    Whole = lists:usort(Wants ++ [Id || {Id, life} <- Losers]),
    Lives = [chatter_group_sync:export(Id, Scope, State)
             || Id <- Whole, chatter_group_state:life(Id, State) =/= none],
    Single = maps:groups_from_list(fun({Id, _, _}) -> Id end,
                                   fun({_, Group, Key}) -> {Group, Key} end,
                                   [Loser || {_, _, _} = Loser <- Losers]),
    Newer = [chatter_group_state:export_keys(Id, Keys, State)
             || {Id, Keys} <- maps:to_list(Single)],
    send_lives([From], Newer ++ Lives, {[], true}, Core).

%% Of nodes that are not known yet, as many as there is room for.
welcome(Lives, #core{peers = Peers, options = #{max_nodes := Max}} = Core) ->
    Me = id(Core),
    {Known, New} = lists:partition(fun({Id, _, _, _}) -> Id =:= Me orelse is_map_key(Id, Peers) end,
                                   Lives),
    Known ++ lists:sublist(New, max(0, Max - map_size(Peers))).

%% A node that the network does not have is not shown until it does.
acquaint(Lives, Now, #core{peers = Peers} = Core) ->
    Known = maps:from_list([{Id, {gone, Now}} || {Id, _, _, _} <- Lives, Id =/= id(Core)]),
    Core#core{peers = maps:merge(Known, Peers)}.

scope(From, Theirs, Core) ->
    chatter_group_sync:scope({id(Core), interests(Core)}, {From, Theirs}).

%% The nodes that are compared: of those that are given up everybody forgets in their own time.
shared(#core{peers = Peers} = Core) ->
    [Id || Id <- chatter_group_state:ids(state(Core)),
           case Peers of
               #{Id := {gone, _}} -> false;
               #{} -> true
           end].

%%% ---------------------------------------------------------------------------------------------
%%% Nodes that come and go

%% @doc The network has a node, or has it again: what it has said counts at once.
-spec peer_up(id(), ms(), core()) -> result().
peer_up(Id, Now, #core{peers = Peers, greeted = Greeted, fresh = Fresh} = Core) ->
    case id(Core) =:= Id orelse maps:get(Id, Peers, none) of
        Known when Known =:= true; Known =:= up -> {Core, []};
        Former ->
            Core1 = Core#core{peers = Peers#{Id => up}, fresh = [Id | Fresh],
                              greeted = maps:merge(#{Id => waiting}, Greeted)},
            Core2 = earliest(flush, Now + ?FLUSH_MS, earliest(fresh, Now + ?FRESH_MS, Core1)),
            {Core2, case Former of
                        {down, _} -> [];
                        _ -> all_events(appear, Id, Core2)
                    end}
    end.

%% @doc The network has lost a node. It is a member until it has been away for `leave_ms'.
-spec peer_down(id(), ms(), core()) -> result().
peer_down(Id, Now, #core{peers = Peers, options = #{leave_ms := Leave}} = Core) ->
    case Peers of
        #{Id := up} ->
            {earliest(leave, Now + Leave, Core#core{peers = Peers#{Id := {down, Now}}}), []};
        #{} -> {Core, []}
    end.

%% @doc The groups that somebody follows: of others there are no events.
-spec watch([name()], core()) -> core().
watch(Groups, Core) ->
    Core#core{watched = maps:from_list([{Group, true} || Group <- Groups])}.

events(Changes, #core{watched = Watched} = Core) ->
    Seen = [Change || Change <- Changes, is_visible(element(1, Change), Core)],
    [{event, Group, Event} || {Group, Event} <- chatter_group_view:events(Seen, Watched)].

all_events(How, Id, #core{watched = Watched} = Core) ->
    [{event, Group, Event}
     || {Group, Event} <- chatter_group_view:all_events(How, Id, {state(Core), Watched})].

is_visible(Id, #core{peers = Peers} = Core) ->
    case Peers of
        #{Id := {gone, _}} -> false;
        #{Id := _} -> true;
        #{} -> Id =:= id(Core)
    end.

up(#core{peers = Peers}) -> [Id || {Id, up} <- maps:to_list(Peers)].

%%% ---------------------------------------------------------------------------------------------
%%% Time

%% @doc When tick/2 is to be called.
-spec next(core()) -> ms().
next(#core{timers = Timers}) -> lists:min(maps:values(Timers)).

%% @doc Does what is due.
-spec tick(ms(), core()) -> result().
tick(Now, #core{timers = Timers} = Core) ->
    Due = [Timer || Timer <- [leave, fresh, flush, sync, collect],
                    maps:get(Timer, Timers, Now + 1) =< Now],
    each(fun(Timer, #core{timers = Left} = Acc) ->
                 due(Timer, Now, Acc#core{timers = maps:remove(Timer, Left)})
         end, Due, Core).

due(flush, _, Core) -> flush(Core);
due(fresh, _, #core{fresh = Fresh, peers = Peers} = Core) ->
    Back = [Id || Id <- lists:usort(Fresh), maps:get(Id, Peers, none) =:= up],
    {Draw, Core1} = draw(max(1, length(up(Core))), Core#core{fresh = []}),
    case Draw =< ?FRESH_SYNCS * length(Back) of
        true ->
            {Which, Core2} = draw(length(Back), Core1),
            begin_sync(lists:nth(Which, Back), Core2);
        false -> {Core1, []}
    end;
due(sync, Now, Core) ->
    %% Who knows of no group asks as well: word of the first one may have been lost.
    {Core1, Effects} = sync_next(Core),
    {again(sync, Now, Core1), Effects};
due(leave, Now, #core{peers = Peers, options = #{leave_ms := Leave}} = Core) ->
    Away = [{Id, Since} || {Id, {down, Since}} <- maps:to_list(Peers)],
    {Over, Still} = lists:partition(fun({_, Since}) -> Since + Leave =< Now end, Away),
    Gone = maps:from_list([{Id, {gone, Since}} || {Id, Since} <- Over]),
    Core1 = lists:foldl(fun({_, Since}, Acc) -> earliest(leave, Since + Leave, Acc) end,
                        Core#core{peers = maps:merge(Peers, Gone)}, Still),
    {Core1, lists:append([all_events(vanish, Id, Core1) || {Id, _} <- Over])};
due(collect, Now, #core{peers = Peers, replica = Replica, options = Options} = Core) ->
    #{collect_ms := Collect, forget_ms := Forget} = Options,
    Replica1 = chatter_group_replica:collect(Now - Collect, Replica),
    Lost = [Id || {Id, {gone, Since}} <- maps:to_list(Peers), Since + Forget =< Now],
    {again(collect, Now, lists:foldl(fun forget/2, Core#core{replica = Replica1}, Lost)), []}.

forget(Id, #core{peers = Peers, greeted = Greeted, replica = Replica} = Core) ->
    Core#core{replica = chatter_group_replica:forget(Id, Replica),
              peers = maps:remove(Id, Peers), greeted = maps:remove(Id, Greeted)}.

%% In rounds, each node once and in an order that is drawn anew for each round (as in SWIM, 4.3): no
%% node waits for long because chance passes it by.
sync_next(#core{round = [Partner | Round], peers = Peers} = Core) ->
    Core1 = Core#core{round = Round},
    case Peers of
        #{Partner := up} -> begin_sync(Partner, Core1);
        #{} -> sync_next(Core1)
    end;
sync_next(#core{round = []} = Core) ->
    case up(Core) of
        [] -> {Core, []};
        Up ->
            {Keyed, Core1} = lists:mapfoldl(fun(Id, Acc) ->
                                                    {Draw, Acc1} = draw(1 bsl 32, Acc),
                                                    {{Draw, Id}, Acc1}
                                            end, Core, Up),
            sync_next(Core1#core{round = [Id || {_, Id} <- lists:sort(Keyed)]})
    end.

begin_sync(Partner, Core) ->
    Theirs = chatter_group_state:interests(Partner, state(Core)),
    {Root, Buckets} = chatter_group_sync:digest(shared(Core), scope(Partner, Theirs, Core),
                                                state(Core)),
    send([Partner], {digest, id(Core), interests(Core), chatter_group_wire:ranges_hash(Theirs),
                     Root, Buckets}, Core).

%% Own changes go to all who want them, and word of this life to who has not heard of it.
flush(#core{replica = Replica, greeted = Greeted} = Core) ->
    {Life, Replica1} = chatter_group_replica:take_pending(Replica),
    Up = up(Core),
    Waiting = [Id || Id <- Up, maps:get(Id, Greeted, waiting) =:= waiting],
    Told = maps:from_list([{Id, told} || Id <- Waiting]),
    Core1 = Core#core{replica = Replica1, greeted = maps:merge(Greeted, Told)},
    {Core2, Hello} = send_lives(Waiting, [setelement(4, Life, [])], {[], false}, Core1),
    {Core3, News} = each(fun({Ids, Part}, Acc) -> send_lives(Ids, [Part], {[], false}, Acc) end,
                         chatter_group_sync:by_interest(Life, Up, state(Core)), Core2),
    {Core3, Hello ++ News}.

flush_soon(Now, #core{replica = Replica} = Core) ->
    case chatter_group_replica:is_pending(Replica) of
        true -> earliest(flush, Now + ?FLUSH_MS, Core);
        false -> Core
    end.

%% The wants go with the last part.
send_lives([], _, _, Core) -> {Core, []};
send_lives(_, [], {[], _}, Core) -> {Core, []};
send_lives(Ids, Lives, {Wants, Answer}, Core) ->
    Chunks = case chatter_group_sync:chunks(Lives) of
                 [] -> [[]];
                 Some -> Some
             end,
    Parts = [{Chunk, []} || Chunk <- lists:droplast(Chunks)] ++ [{lists:last(Chunks), Wants}],
    each(fun({Chunk, Want}, Acc) ->
                 send(Ids, {lives, id(Core), interests(Core), Chunk, Want, Answer}, Acc)
         end, Parts, Core).

send(Ids, Message, Core) ->
    Bytes = chatter_group_wire:encode(Message),
    {count(sent_bytes, length(Ids) * byte_size(Bytes), count(sent, length(Ids), Core)),
     [{send, Ids, Bytes}]}.

each(Fun, Items, Core) ->
    lists:foldl(fun(Item, {Acc, Effects}) ->
                        {Acc1, More} = Fun(Item, Acc),
                        {Acc1, Effects ++ More}
                end, {Core, []}, Items).

earliest(Timer, At, #core{timers = Timers} = Core) ->
    Core#core{timers = Timers#{Timer => min(At, maps:get(Timer, Timers, At))}}.

%% Regular work is done a little earlier or later each time, so that nodes do not march in step.
again(sync, Now, #core{options = #{sync_ms := Every}} = Core) ->
    {Draw, Core1} = draw(Every div 2 + 1, Core),
    earliest(sync, Now + Every - Every div 4 + Draw - 1, Core1);
again(collect, Now, #core{options = #{collect_ms := Collect, forget_ms := Forget}} = Core) ->
    earliest(collect, Now + max(1, min(Collect, Forget) div 4), Core).

draw(Max, #core{random = Random} = Core) ->
    {Draw, Random1} = rand:uniform_s(Max, Random),
    {Draw, Core#core{random = Random1}}.

count(What, Add, #core{counts = Counts} = Core) ->
    Core#core{counts = Counts#{What => Add + maps:get(What, Counts, 0)}}.

%%% ---------------------------------------------------------------------------------------------
%%% Questions

%% @doc This node.
-spec id(core()) -> id().
id(#core{replica = Replica}) -> chatter_group_replica:id(Replica).

%% @doc All that is known.
-spec state(core()) -> chatter_group_state:state().
state(#core{replica = Replica}) -> chatter_group_replica:state(Replica).

%% @doc What is shown of it.
-spec view(core()) -> chatter_group_view:view().
view(Core) -> {state(Core), fun(Id) -> is_visible(Id, Core) end}.

%% @doc The groups of which this node wants less than all.
-spec interests(core()) -> chatter_group_wire:interests().
interests(Core) -> chatter_group_state:interests(id(Core), state(Core)).

%% @doc The groups that this node itself is in.
-spec my_groups(core()) -> [name()].
my_groups(#core{holders = Holders}) -> lists:sort(maps:keys(Holders)).

%% @doc The processes that are members.
-spec processes(core()) -> [pid()].
processes(#core{holders = Holders}) ->
    lists:usort([Pid || Of <- maps:values(Holders), Pid <- maps:keys(Of), is_pid(Pid)]).

%% @doc Those of one group.
-spec processes(name(), core()) -> [pid()].
processes(Group, #core{holders = Holders}) ->
    [Pid || Pid <- maps:keys(maps:get(Group, Holders, #{})), is_pid(Pid)].

%% @doc The groups that a process is a member of.
-spec held_by(pid(), core()) -> [name()].
held_by(Pid, #core{holders = Holders}) ->
    [Group || {Group, Of} <- maps:to_list(Holders), is_map_key(Pid, Of)].

%% @doc A message that tells what this node has said in a group.
-spec statement(name(), core()) -> binary().
statement(Group, Core) ->
    Life = chatter_group_state:export(id(Core), fun(G, _) -> G =:= Group end, state(Core)),
    chatter_group_wire:encode({lives, id(Core), interests(Core), [Life], [], true}).

%% @doc Figures: messages and their bytes, those refused, nodes known, dead entries kept.
-spec info(core()) -> #{atom() => non_neg_integer()}.
info(#core{counts = Counts, replica = Replica} = Core) ->
    Zero = #{sent => 0, sent_bytes => 0, received => 0, received_bytes => 0, refused => 0},
    (maps:merge(Zero, Counts))#{nodes => length(chatter_group_state:ids(state(Core))),
                                groups => length(chatter_group_state:groups(state(Core))),
                                dead => chatter_group_replica:dead(Replica)}.
