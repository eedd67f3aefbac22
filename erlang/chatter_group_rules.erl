%% SPDX-License-Identifier: Apache-2.0
%% @doc What a node may say about itself, and what it then has to write. No process.
%%
%% A refused command changes nothing. Limits are those of the node that says something; what others
%% have said under greater ones is taken in all the same, or replicas would never be equal.
-module(chatter_group_rules).

-export([plan/3]).

-export_type([command/0, reason/0, options/0, holders/0]).

-type holders() :: #{node | pid() => true}.
%% Why a node is a member: it has joined itself, or processes on it have.
-type write() :: {chatter_group_wire:key(), chatter_group_wire:value()}.
-type command() :: {join | leave, Group :: term(), node | pid()}
                 | {add_item | remove_item, Group :: term(), From :: term(), To :: term(),
                    Port :: term()}
                 | {interest, Group :: term(), Ranges :: term()}
                 | {add_group | remove_group, Parent :: term(), Child :: term()}.
-type options() :: #{max_groups := pos_integer(), max_members := pos_integer(),
                     max_items := pos_integer(), max_name := pos_integer(), atom() => integer()}.
-type reason() :: bad_name | bad_range | bad_port | no_item | no_group | cycle
                | {limit, group_max_groups | group_max_members | group_max_items | ranges,
                   pos_integer()}.
-type context() :: {chatter_group_wire:id(), chatter_group_view:view(), options()}.
-type plan() :: {ok, holders(), [write()]} | {error, reason()}.

%% A node may have so many ranges of interest in one group: each message that compares tells them.
-define(MAX_RANGES, 64).

%% @doc Who holds the node in the group afterwards, and its new entries there.
-spec plan(command(), holders(), context()) -> plan().
plan(Command, Holders, {_, _, Options} = Context) ->
    case valid_name(element(2, Command), Options) of
        true -> do(Command, Holders, Context);
        false -> {error, bad_name}
    end.

valid_name(Name, #{max_name := Max}) ->
    is_binary(Name) andalso byte_size(Name) > 0 andalso byte_size(Name) =< Max.

do({join, Group, node}, Holders, Context) ->
    %% Again if need be: who joins twice is heard twice.
    join(Group, node, Holders, Context);
do({join, _, Holder}, Holders, _) when map_size(Holders) > 0 ->
    {ok, Holders#{Holder => true}, []};
do({join, Group, Holder}, Holders, Context) ->
    join(Group, Holder, Holders, Context);
do({leave, _, Holder}, Holders, _) when not is_map_key(Holder, Holders) ->
    {ok, Holders, []};
do({leave, Group, Holder}, Holders, Context) ->
    Left = maps:remove(Holder, Holders),
    {ok, Left,
     [get_entry(false, interest(Group, Context)) || map_size(Left) =:= 0]
     ++ [{Key, {dead, Port}} || Holder =:= node,
                                {{add, _, _} = Key, {live, Port}} <- own(Group, Context)]};
do({add_item, Group, From, To, Port}, Holders, Context) ->
    Range = chatter_group_ranges:valid(From, To),
    if not Range -> {error, bad_range};
       not is_integer(Port); Port < 0; Port > 65535 -> {error, bad_port};
       true -> add_item(Group, {{add, From, To}, {live, Port}}, Holders, Context)
    end;
do({remove_item, Group, From, To, Port}, Holders, Context) ->
    case lists:member({{add, From, To}, {live, Port}}, own(Group, Context)) of
        true -> {ok, Holders, [{{add, From, To}, {dead, Port}}]};
        false -> {error, no_item}
    end;
do({interest, Group, Ranges}, Holders, Context) ->
    case {interest_of(Ranges), new_group(Group, Context)} of
        {{ok, Interest}, ok} -> {ok, Holders, [get_entry(map_size(Holders) > 0, Interest)]};
        {{error, _} = Error, _} -> Error;
        {_, Error} -> Error
    end;
do({add_group, Parent, Child}, Holders, {_, View, Options} = Context) ->
    case valid_name(Child, Options) andalso
        not chatter_group_nested:closes(Parent, Child, chatter_group_view:edges(View)) of
        true ->
            case first_error([fun() -> new_group(Parent, Context) end,
                              fun() -> room_for({sub, Child}, Parent, Context) end]) of
                ok -> {ok, Holders, [{{sub, Child}, {live, none}}]};
                Error -> Error
            end;
        false ->
            {error, case valid_name(Child, Options) of true -> cycle; false -> bad_name end}
    end;
do({remove_group, Parent, Child}, Holders, Context) ->
    case lists:member({{sub, Child}, {live, none}}, own(Parent, Context)) of
        true -> {ok, Holders, [{{sub, Child}, {dead, none}}]};
        false -> {error, no_group}
    end.

join(Group, Holder, Holders, Context) ->
    case first_error([fun() -> new_group(Group, Context) end,
                      fun() -> new_member(Group, Holders, Context) end]) of
        ok -> {ok, Holders#{Holder => true}, [get_entry(true, interest(Group, Context))]};
        Error -> Error
    end.

%% Who serves a range is a member.
add_item(Group, {Key, _} = Write, Holders, Context) ->
    Joined = case is_map_key(node, Holders) of
                 true -> {ok, Holders, []};
                 false -> do({join, Group, node}, Holders, Context)
             end,
    case {Joined, room_for(Key, Group, Context)} of
        {{ok, Holders1, Writes}, ok} -> {ok, Holders1, Writes ++ [Write]};
        {{error, _} = Error, _} -> Error;
        {_, Error} -> Error
    end.

first_error([Check | Checks]) ->
    case Check() of
        ok -> first_error(Checks);
        Error -> Error
    end;
first_error([]) -> ok.

new_group(Group, {Id, {State, _}, #{max_groups := Max}}) ->
    Known = chatter_group_state:in_group(Group, State) =/= [],
    Mine = chatter_group_state:count(Id, Group, State) > 0,
    case Mine orelse
        (length(chatter_group_state:groups_of(Id, State)) < Max andalso
         (Known orelse length(chatter_group_state:groups(State)) < Max)) of
        true -> ok;
        false -> {error, {limit, group_max_groups, Max}}
    end.

new_member(_, Holders, _) when map_size(Holders) > 0 -> ok;
new_member(Group, _, {_, {State, _}, #{max_members := Max}}) ->
    case length(chatter_group_state:in_group(Group, State)) < Max of
        true -> ok;
        false -> {error, {limit, group_max_members, Max}}
    end.

%% Groups in a group count like items; an item that is there already takes no more room.
room_for(Key, Group, {_, _, #{max_items := Max}} = Context) ->
    Others = [K || {K, {live, _}} <- own(Group, Context), K =/= get, K =/= Key],
    case length(Others) < Max of
        true -> ok;
        false -> {error, {limit, group_max_items, Max}}
    end.

own(Group, {Id, {State, _}, _}) ->
    [{Key, Value} || {Key, {_, _, Value}} <-
                         maps:to_list(chatter_group_state:entries(Id, Group, State))].

interest(Group, Context) ->
    case lists:keyfind(get, 1, own(Group, Context)) of
        {get, {_, {_, Interest}}} -> Interest;
        false -> all
    end.

get_entry(false, all) -> {get, {dead, {false, all}}};
get_entry(Member, Interest) -> {get, {live, {Member, Interest}}}.

interest_of(all) -> {ok, all};
%% A guard that fails: not a list, or one that does not end.
interest_of(Ranges) when length(Ranges) >= 0 ->
    Valid = fun({From, To}) -> chatter_group_ranges:valid(From, To);
               (_) -> false
            end,
    case lists:all(Valid, Ranges) of
        true ->
            case chatter_group_ranges:normal(Ranges) of
                Normal when length(Normal) =< ?MAX_RANGES -> {ok, Normal};
                _ -> {error, {limit, ranges, ?MAX_RANGES}}
            end;
        false -> {error, bad_range}
    end;
interest_of(_) -> {error, bad_range}.
