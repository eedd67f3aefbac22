%% SPDX-License-Identifier: Apache-2.0
%% @doc Groups: which nodes belong together, and who of them serves which part of a key space of
%% 32 bits. From Elixir: `:chatter_group.join("Group1")' and so on.
%%
%% A node may be in many groups. Each node knows the members of all groups, and the ranges they
%% serve unless it wants less (interest/2). All nodes come to know the same, after partitions and
%% restarts too; docs/groups.md has the rules.
%%
%% A group is named by a binary of 1 to `group_max_name' bytes. All functions return
%% `{error, not_started}' while this node is not alive, and those that change something
%% `{error, reason()}' with nothing changed; `{limit, Key, Value}' names the key of the
%% configuration that the change would go beyond.
-module(chatter_group).

-export([join/1, join/2, leave/1, leave/2, add_item/4, remove_item/4, interest/2,
         add_group/2, remove_group/2]).
-export([members/1, members/2, local_members/1, groups/0, my_groups/0, topology/1, topology/2,
         owners/2, coverage/1, choose/2, choose/3, subscribe/1, unsubscribe/1, my_id/0, info/0]).

-export_type([group/0, key/0, net_id/0, op/0, item/0, timed_item/0, local_clock/0, reason/0,
              event/0, chooser/0]).

%% As in the seed of this: tuples that Elixir and Erlang read alike.
-record(item, {
    member :: net_id(),
    op :: op(),
    start_range :: key(),
    end_range :: key(),
    port :: inet:port_number()
}).
-record(local_clock, {member :: net_id(), time_val :: non_neg_integer()}).
-record(timed_item, {item :: item(), updated_at :: local_clock()}).

-type group() :: binary().
-type key() :: 0..16#ffffffff.
-type net_id() :: none | {net_id, inet:ip_address(), inet:port_number()}.
%% `none' as long as a node has not told its address.
-type op() :: add | rmv | get.
%% `add': serves the range at the port. `get': is a member, and wants to know of the range. `rmv':
%% was one of these; is shown for `group_collect_s'.
-type item() :: #item{}.
-type local_clock() :: #local_clock{}.
%% Counts what a member has said in a group, since it was started.
-type timed_item() :: #timed_item{}.
-type reason() :: not_started | chatter_group_rules:reason().
-type event() :: {join | leave, node()}
               | {add | remove, node(), {From :: key(), To :: key(), inet:port_number()}}
               | {add_group | remove_group, node(), group()}.
-type chooser() :: fun(([{key(), key(), Serving :: non_neg_integer()}], pos_integer(),
                        Start :: key()) -> [{key(), key()}]).

%%% ---------------------------------------------------------------------------------------------
%%% What this node says

%% @doc This node is a member. Joining again is told again.
-spec join(group()) -> ok | {error, reason()}.
join(Group) -> done({join, Group, node}).

%% @doc The same, and tells the nodes at these addresses even if the network has not shown them
%% yet. With a process of this node: the process is a member, and the node is one for as long as
%% it, another process, or the node itself is. That ends with the process.
-spec join(group(), [net_id()] | pid()) -> ok | {error, reason()}.
join(Group, Pid) when is_pid(Pid), node(Pid) =:= node() ->
    done({join, Group, Pid});
join(Group, NetIds) when is_list(NetIds) ->
    case join(Group) of
        ok when NetIds =/= [] -> chatter_group_srv:tell(Group, NetIds);
        Other -> Other
    end.

%% @doc This node is not a member any more, and its ranges in the group end. If it is not one, or
%% local processes are, nothing changes for them.
-spec leave(group()) -> ok | {error, reason()}.
leave(Group) -> done({leave, Group, node}).

%% @doc The process is not a member any more.
-spec leave(group(), pid()) -> ok | {error, reason()}.
leave(Group, Pid) when is_pid(Pid) -> done({leave, Group, Pid}).

%% @doc This node serves a range, both ends included, at a port. It is a member from then on. The
%% same range again has the new port.
-spec add_item(group(), key(), key(), inet:port_number()) ->
          {ok, timed_item()} | {error, reason()}.
add_item(Group, From, To, Port) -> item_of({add_item, Group, From, To, Port}).

%% @doc It does not any more. `no_item': it did not.
-spec remove_item(group(), key(), key(), inet:port_number()) ->
          {ok, timed_item()} | {error, reason()}.
remove_item(Group, From, To, Port) -> item_of({remove_item, Group, From, To, Port}).

%% @doc This node wants to know of these ranges only, 64 at most, or of all. Members are always
%% known, ranges of others that lie elsewhere are then not sent to this node.
-spec interest(group(), all | [{key(), key()}]) -> ok | {error, reason()}.
interest(Group, Ranges) -> done({interest, Group, Ranges}).

%% @doc The members of a group, and those of the groups in it, are members of another, for as long
%% as a node that has said so does not take it back and is there. `cycle': it would contain itself.
-spec add_group(group(), group()) -> ok | {error, reason()}.
add_group(Parent, Child) -> done({add_group, Parent, Child}).

%% @doc Takes it back. `no_group': this node has not said so.
-spec remove_group(group(), group()) -> ok | {error, reason()}.
remove_group(Parent, Child) -> done({remove_group, Parent, Child}).

done(Command) ->
    case chatter_group_srv:command(Command) of
        {ok, _} -> ok;
        {error, _} = Error -> Error
    end.

item_of(Command) ->
    case chatter_group_srv:command(Command) of
        {ok, Written} ->
            {Key, Entry} = lists:last(Written),
            [Item] = timed_items(my_id(), Key, Entry),
            {ok, Item};
        {error, _} = Error -> Error
    end.

%%% ---------------------------------------------------------------------------------------------
%%% What this node knows

%% @doc The members of a group and of the groups in it, by address.
-spec members(group()) -> [net_id()] | {error, not_started}.
members(Group) ->
    query(fun(Core) ->
                  {State, _} = View = chatter_group_core:view(Core),
                  lists:usort([net_id(Id, State) || Id <- chatter_group_view:members(Group, View)])
          end).

%% @doc The same by name.
-spec members(group(), [nodes]) -> [node()] | {error, not_started}.
members(Group, [nodes]) ->
    names(query(fun(Core) ->
                        chatter_group_view:members(Group, chatter_group_core:view(Core))
                end)).

%% @doc The processes of this node that have joined.
-spec local_members(group()) -> [pid()] | {error, not_started}.
local_members(Group) ->
    query(fun(Core) -> chatter_group_core:processes(Group, Core) end).

%% @doc All groups that anybody is in.
-spec groups() -> [group()] | {error, not_started}.
groups() ->
    query(fun(Core) -> chatter_group_view:groups(chatter_group_core:view(Core)) end).

%% @doc Those that this node itself is in.
-spec my_groups() -> [group()] | {error, not_started}.
my_groups() ->
    query(fun chatter_group_core:my_groups/1).

%% @doc What every member has said, by member and range.
-spec topology(group()) -> [timed_item()] | {error, not_started}.
topology(Group) ->
    query(fun(Core) ->
                  {State, _} = View = chatter_group_core:view(Core),
                  by_range([Item || {Id, Key, Entry} <- chatter_group_view:entries(Group, View),
                                    Item <- timed_items(net_id(Id, State), Key, Entry)])
          end).

%% @doc Of that, one kind.
-spec topology(group(), op()) -> [timed_item()] | {error, not_started}.
topology(Group, Op) when Op =:= add; Op =:= rmv; Op =:= get ->
    case topology(Group) of
        {error, _} = Error -> Error;
        Items -> [Item || #timed_item{item = #item{op = O}} = Item <- Items, O =:= Op]
    end.

%% @doc Who serves a key, and where. `not_interested': this node has said that it does not want to
%% know.
-spec owners(group(), key()) -> [{node(), net_id(), inet:port_number()}]
                              | {error, not_started | not_interested}.
owners(Group, Key) when is_integer(Key), 0 =< Key, Key =< 16#ffffffff ->
    Found = query(fun(Core) ->
                          {State, _} = View = chatter_group_core:view(Core),
                          case wanted({Key, Key}, Group, Core) of
                              [] -> {error, not_interested};
                              _ -> [{Id, net_id(Id, State), Port}
                                    || {Id, Port} <- chatter_group_view:owners(Group, Key, View)]
                          end
                  end),
    case Found of
        {error, _} = Error -> Error;
        _ -> [{binary_to_atom(Id), NetId, Port} || {Id, NetId, Port} <- Found]
    end.

%% @doc How many keys are served, which ranges are not (`gaps'), and which are by more than one
%% (`overlaps', with how many). Of the ranges only that this node is interested in.
-spec coverage(group()) -> chatter_group_ranges:coverage() | {error, not_started}.
coverage(Group) ->
    query(fun(Core) ->
                  Served = [Range || {_, Range, _} <- serving(Group, Core)],
                  chatter_group_ranges:coverage(wanted(Group, Core), Served)
          end).

%% @doc Proposes ranges for this node to serve besides those it serves, `Capacity' keys in all: what
%% nobody serves first, then what the fewest do. Nothing is said: add_item/4 does that.
-spec choose(group(), pos_integer()) -> [{key(), key()}] | {error, not_started}.
choose(Group, Capacity) -> choose(Group, Capacity, fun chatter_group_ranges:choose/3).

%% @doc The same as chosen by a function. It gets the ranges that this node does not serve, each
%% with how many do; the capacity; and a key that is another for each node, to begin at.
-spec choose(group(), pos_integer(), chooser()) -> [{key(), key()}] | {error, not_started}.
choose(Group, Capacity, Chooser)
  when is_integer(Capacity), Capacity > 0, is_function(Chooser, 3) ->
    Asked = query(fun(Core) ->
                          Me = chatter_group_core:id(Core),
                          {Mine, Others} = lists:partition(fun({Id, _, _}) -> Id =:= Me end,
                                                           serving(Group, Core)),
                          Free = [{From, To} || {From, To, 0} <- chatter_group_ranges:segments(
                                                                   wanted(Group, Core),
                                                                   [R || {_, R, _} <- Mine])],
                          {chatter_group_ranges:segments(Free, [R || {_, R, _} <- Others]),
                           erlang:crc32(Me)}
                  end),
    case Asked of
        {error, _} = Error -> Error;
        {Segments, Start} -> Chooser(Segments, Capacity, Start)
    end.

%% @doc Has the caller told `{chatter_group, Group, event()}' of what happens in a group from now
%% on, until it dies or does not want it any more. What is the case at the time the other functions
%% tell, if they are asked after this.
-spec subscribe(group()) -> ok | {error, not_started}.
subscribe(Group) when is_binary(Group) -> chatter_group_srv:subscribe(Group).

-spec unsubscribe(group()) -> ok | {error, not_started}.
unsubscribe(Group) when is_binary(Group) -> chatter_group_srv:unsubscribe(Group).

%% @doc The address of this node, by which others see it.
-spec my_id() -> net_id() | {error, not_started}.
my_id() ->
    query(fun(Core) -> net_id(chatter_group_core:id(Core), chatter_group_core:state(Core)) end).

%% @doc Figures: messages and bytes sent and received since the start, messages `refused' as
%% malformed, `nodes' and `groups' known, `dead' entries not yet collected.
-spec info() -> #{atom() => non_neg_integer()} | {error, not_started}.
info() -> query(fun chatter_group_core:info/1).

%%% ---------------------------------------------------------------------------------------------

query(Fun) ->
    case chatter_group_srv:query(Fun) of
        {ok, Answer} -> Answer;
        {error, _} = Error -> Error
    end.

by_range(Items) ->
    Place = fun(#timed_item{item = #item{member = Member, start_range = From, end_range = To}}) ->
                    {Member, From, To}
            end,
    [Item || {_, Item} <- lists:sort([{Place(Item), Item} || Item <- Items])].

names({error, _} = Error) -> Error;
names(Ids) -> [binary_to_atom(Id) || Id <- Ids].

serving(Group, Core) -> chatter_group_view:serving(Group, chatter_group_core:view(Core)).

wanted(Group, Core) -> wanted(chatter_group_ranges:whole(), Group, Core).

wanted(Range, Group, Core) ->
    case lists:keyfind(Group, 1, chatter_group_core:interests(Core)) of
        {_, Ranges} -> chatter_group_ranges:inside(Range, Ranges);
        false -> [Range]
    end.

net_id(Id, State) ->
    {_, NetId} = chatter_group_state:life(Id, State),
    NetId.

%% A member is shown by the ranges it wants to know of. Groups in groups are no items.
timed_items(NetId, get, {_, Clock, {Life, {Member, Interest}}}) ->
    Op = case {Life, Member} of
             {live, true} -> get;
             {live, false} -> none;
             {dead, _} -> rmv
         end,
    Ranges = case Interest of
                 all -> [chatter_group_ranges:whole()];
                 _ -> Interest
             end,
    [timed_item(NetId, Op, Range, 0, Clock) || Range <- Ranges, Op =/= none];
timed_items(NetId, {add, From, To}, {_, Clock, {Life, Port}}) ->
    Op = case Life of
             live -> add;
             dead -> rmv
         end,
    [timed_item(NetId, Op, {From, To}, Port, Clock)];
timed_items(_, {sub, _}, _) -> [].

timed_item(NetId, Op, {From, To}, Port, Clock) ->
    #timed_item{item = #item{member = NetId, op = Op, start_range = From, end_range = To,
                             port = Port},
                updated_at = #local_clock{member = NetId, time_val = Clock}}.
