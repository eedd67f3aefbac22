%% SPDX-License-Identifier: Apache-2.0
%% @doc What users see of groups: what is known, without the nodes that the network has given up.
%% No process.
-module(chatter_group_view).

-export([groups/1, members/2, member_of/3, entries/2, serving/2, owners/3, edges/1, events/2,
         all_events/3]).

-export_type([view/0, event/0]).

-type id() :: chatter_group_wire:id().
-type name() :: chatter_group_wire:name().
-type view() :: {chatter_group_state:state(), Visible :: fun((id()) -> boolean())}.
-type event() :: {join | leave, id()}
               | {add | remove, id(), {0..16#ffffffff, 0..16#ffffffff, inet:port_number()}}
               | {add_group | remove_group, id(), name()}.

%% @doc The groups that have a member, or another group in them.
-spec groups(view()) -> [name()].
groups({State, _} = View) ->
    Parents = maps:keys(edges(View)),
    lists:usort(Parents ++ [Group || Group <- chatter_group_state:groups(State),
                                     lists:any(fun(Id) -> member_of(Id, Group, State) end,
                                               visible(Group, View))]).

%% @doc The members of a group and of the groups in it.
-spec members(name(), view()) -> [id()].
members(Group, {State, _} = View) ->
    Groups = case chatter_group_state:subs(State) of
                 [] -> [Group];
                 _ -> chatter_group_nested:below(Group, edges(View))
             end,
    lists:usort([Id || G <- Groups, Id <- visible(G, View), member_of(Id, G, State)]).

%% @doc Whether a node is itself a member of a group.
-spec member_of(id(), name(), chatter_group_state:state()) -> boolean().
member_of(Id, Group, State) ->
    case chatter_group_state:entry(Id, Group, get, State) of
        {_, _, {live, {Member, _}}} -> Member;
        _ -> false
    end.

%% @doc All entries of a group, dead ones too.
-spec entries(name(), view()) ->
          [{id(), chatter_group_wire:key(), chatter_group_wire:entry()}].
entries(Group, {State, Visible}) ->
    [{Id, Key, Entry} || Id <- chatter_group_state:ids(State), Visible(Id),
                         {Key, Entry} <- maps:to_list(
                                           chatter_group_state:entries(Id, Group, State))].

%% @doc Who serves which range of a group, and on which port.
-spec serving(name(), view()) ->
          [{id(), chatter_group_ranges:range(), inet:port_number()}].
serving(Group, {State, _} = View) ->
    [{Id, {From, To}, Port}
     || Id <- visible(Group, View),
        {{add, From, To}, {_, _, {live, Port}}} <-
            maps:to_list(chatter_group_state:entries(Id, Group, State))].

%% @doc Who serves a key of a group, and on which port.
-spec owners(name(), 0..16#ffffffff, view()) -> [{id(), inet:port_number()}].
owners(Group, Key, View) ->
    lists:usort([{Id, Port} || {Id, {From, To}, Port} <- serving(Group, View),
                               From =< Key, Key =< To]).

%% @doc Which groups are in which.
-spec edges(view()) -> #{name() => [name()]}.
edges({State, Visible}) ->
    chatter_group_nested:edges([Sub || {{_, _, Id}, _} = Sub <- chatter_group_state:subs(State),
                                       Visible(Id)]).

visible(Group, {State, Visible}) ->
    [Id || Id <- chatter_group_state:in_group(Group, State), Visible(Id)].

%%% ---------------------------------------------------------------------------------------------

%% @doc What somebody who follows these groups is told of changes, in their order.
-spec events([chatter_group_state:change()], #{name() => term()}) -> [{name(), event()}].
events(_, Watched) when map_size(Watched) =:= 0 -> [];
events(Changes, Watched) ->
    [{Group, Event} || {Id, Group, Key, Old, New} <- Changes, is_map_key(Group, Watched),
                       Event <- event(Id, Key, live(Old), live(New))].

%% @doc The same when a node comes into sight with all it has said, or goes out of it.
-spec all_events(appear | vanish, id(), {chatter_group_state:state(), #{name() => term()}}) ->
          [{name(), event()}].
all_events(How, Id, {State, Watched}) ->
    Live = [{Id, Group, Key, Value}
            || Group <- maps:keys(Watched),
               {Key, {_, _, {live, _} = Value}} <-
                   lists:sort(maps:to_list(chatter_group_state:entries(Id, Group, State)))],
    events(case How of
               appear -> [{I, Group, Key, none, Value} || {I, Group, Key, Value} <- Live];
               vanish -> [{I, Group, Key, Value, none} || {I, Group, Key, Value} <- Live]
           end, Watched).

live({live, Content}) -> {live, Content};
live(_) -> none.

event(_, _, Same, Same) -> [];
event(Id, get, Old, New) ->
    case {member(Old), member(New)} of
        {false, true} -> [{join, Id}];
        {true, false} -> [{leave, Id}];
        _ -> []
    end;
event(Id, {add, From, To}, Old, New) ->
    [{remove, Id, {From, To, Port}} || {live, Port} <- [Old]] ++
        [{add, Id, {From, To, Port}} || {live, Port} <- [New]];
event(Id, {sub, Child}, Old, New) ->
    [{remove_group, Id, Child} || Old =/= none] ++ [{add_group, Id, Child} || New =/= none].

member({live, {Member, _}}) -> Member;
member(none) -> false.
