%% SPDX-License-Identifier: Apache-2.0
%% @doc What all nodes have said about groups, as a convergent replicated data type. No process, no
%% clock: values in, values out.
%%
%% Each node writes about itself only. What it has said in one *life* (an incarnation) is a set of
%% entries, and each entry carries a version that the node has used for nothing else in that life.
%% The rules of merging:
%%
%%   1. Of two lives of a node the later is kept, whole, and the earlier forgotten, whole.
%%   2. Within a life, of two entries of one key the one with the greater version is kept. Should
%%      two differ that have the same version (two nodes of one name, a clock that was set back),
%%      the one whose encoded bytes are greater is kept.
%%   3. What was removed stays as a *dead* entry, until collect/4.
%%
%% Each is the maximum of a total order, within the other, so merging is commutative, associative
%% and idempotent, also on ties and after a restart.
-module(chatter_group_state).

-export([new/0, merge/2, put/5, renew/4, collect/4, drop/2, keep/3]).
-export([ids/1, life/2, entry/4, entries/3, export/3, export_keys/3, hash/2, hash/3]).
-export([groups/1, in_group/2, groups_of/2, subs/1, interests/2, narrowed/1, count/3]).

-export_type([state/0, change/0, filter/0, loser/0]).

-type id() :: chatter_group_wire:id().
-type name() :: chatter_group_wire:name().
-type key() :: chatter_group_wire:key().
-type entry() :: chatter_group_wire:entry().
-type value() :: chatter_group_wire:value().
-type life() :: chatter_group_wire:life().
-type filter() :: fun((name(), key()) -> boolean()).
-type change() :: {id(), name(), key(), Old :: none | value(), New :: none | value()}.
-type loser() :: {id(), life} | {id(), name(), key()}.
%% What somebody else has told that is older than what is known here.

-record(life, {
    inc :: chatter_group_wire:counter(),
    net_id = none :: chatter_group_wire:net_id(),
    %% No map in it is empty.
    groups = #{} :: #{name() => #{key() => entry()}},
    %% Of the live entries: their hashes, by exclusive or.
    hash = 0 :: chatter_group_wire:hash()
}).

-record(state, {
    lives = #{} :: #{id() => #life{}},
    %% The groups that a node has live entries in, the other way round.
    index = #{} :: #{name() => #{id() => pos_integer()}},
    %% Live `sub' entries: they are few, and wanted all at once.
    subs = #{} :: #{{Parent :: name(), Child :: name(), id()} => {pos_integer(), pos_integer()}},
    %% Who wants less than all of a group.
    narrow = #{} :: #{id() => #{name() => [chatter_group_wire:range()]}}
}).
-opaque state() :: #state{}.

%% @doc Nothing known of anybody.
-spec new() -> state().
new() -> #state{}.

%% @doc Takes in what another replica knows. The changes, in their order, are those of live entries
%% and those to dead ones; losers are what was told but is known better here.
-spec merge([life()], state()) -> {state(), [change()], [loser()]}.
merge(Lives, State) ->
    {State1, Changes, Losers} = lists:foldl(fun merge_life/2, {State, [], []}, Lives),
    {State1, lists:reverse(Changes), Losers}.

merge_life({Id, Inc, NetId, Groups}, {#state{lives = Lives} = State, Changes, Losers}) ->
    case Lives of
        #{Id := #life{inc = Known}} when Known > Inc ->
            {State, Changes, [{Id, life} | Losers]};
        #{Id := #life{inc = Inc, net_id = Former} = Life} ->
            %% `none' is the least of all: an atom is less than a tuple.
            State1 = set_life(Id, Life#life{net_id = max(Former, NetId)}, State),
            merge_groups(Id, Groups, {State1, Changes, Losers});
        #{} ->
            {State1, Ended} = drop(Id, State),
            State2 = set_life(Id, #life{inc = Inc, net_id = NetId}, State1),
            merge_groups(Id, Groups, {State2, Ended ++ Changes, Losers})
    end.

merge_groups(Id, Groups, Acc) ->
    lists:foldl(fun({Group, Entries}, Acc1) ->
                        lists:foldl(fun({Key, Entry}, Acc2) ->
                                            merge_entry(Id, Group, Key, Entry, Acc2)
                                    end, Acc1, Entries)
                end, Acc, Groups).

merge_entry(Id, Group, Key, New, {State, Changes, Losers}) ->
    case entry(Id, Group, Key, State) of
        New -> {State, Changes, Losers};
        Old ->
            case newer(Key, New, Old) of
                true ->
                    Change = {Id, Group, Key, value(Old), value(New)},
                    {set_entry(Id, Group, Key, Old, New, State), [Change | Changes], Losers};
                false -> {State, Changes, [{Id, Group, Key} | Losers]}
            end
    end.

newer(_, _, none) -> true;
newer(Key, {V, _, _} = New, {V, _, _} = Old) ->
    iolist_to_binary(chatter_group_wire:entry(Key, New))
        > iolist_to_binary(chatter_group_wire:entry(Key, Old));
newer(_, {New, _, _}, {Old, _, _}) -> New > Old.

value(none) -> none;
value({_, _, Value}) -> Value.

%% @doc Writes an entry of a node whose life is known: its version must be greater than all before.
-spec put(id(), name(), key(), entry(), state()) -> state().
put(Id, Group, Key, Entry, State) ->
    set_entry(Id, Group, Key, entry(Id, Group, Key, State), Entry, State).

%% @doc Begins a life of a node, or goes on with the entries of the last one under a later number.
-spec renew(id(), chatter_group_wire:counter(), chatter_group_wire:net_id(), state()) -> state().
renew(Id, Inc, NetId, #state{lives = Lives, subs = Subs} = State) ->
    Life = maps:get(Id, Lives, #life{inc = Inc}),
    Moved = maps:map(fun({_, _, Of}, {_, V}) when Of =:= Id -> {Inc, V};
                        (_, At) -> At
                     end, Subs),
    set_life(Id, Life#life{inc = Inc, net_id = NetId}, State#state{subs = Moved}).

%% @doc Forgets an entry if it is dead.
-spec collect(id(), name(), key(), state()) -> state().
collect(Id, Group, Key, State) ->
    case entry(Id, Group, Key, State) of
        {_, _, {dead, _}} = Old -> set_entry(Id, Group, Key, Old, none, State);
        _ -> State
    end.

%% @doc Forgets a node, with the changes that this is.
-spec drop(id(), state()) -> {state(), [change()]}.
drop(Id, #state{lives = Lives} = State) ->
    case Lives of
        #{Id := #life{groups = Groups}} ->
            Entries = [{Group, Key, Entry} || {Group, Map} <- maps:to_list(Groups),
                                              {Key, Entry} <- maps:to_list(Map)],
            #state{lives = Lives1} = State1 =
                lists:foldl(fun({Group, Key, Entry}, S) ->
                                    set_entry(Id, Group, Key, Entry, none, S)
                            end, State, Entries),
            {State1#state{lives = maps:remove(Id, Lives1)},
             [{Id, Group, Key, Value, none} || {Group, Key, {_, _, Value}} <- Entries]};
        #{} -> {State, []}
    end.

%% @doc Forgets the entries of a group, except those of one node, that the filter does not let
%% pass.
-spec keep({name(), filter()}, id(), state()) -> state().
keep({Group, Filter}, Except, State) ->
    lists:foldl(fun(Id, S) when Id =:= Except -> S;
                   (Id, S) ->
                        maps:fold(fun(Key, Entry, S1) ->
                                          case Filter(Group, Key) of
                                              true -> S1;
                                              false -> set_entry(Id, Group, Key, Entry, none, S1)
                                          end
                                  end, S, entries(Id, Group, S))
                end, State, ids(State)).

%%% ---------------------------------------------------------------------------------------------
%%% Questions

%% @doc The nodes of which anything is known.
-spec ids(state()) -> [id()].
ids(#state{lives = Lives}) -> maps:keys(Lives).

%% @doc The incarnation and address of a node.
-spec life(id(), state()) -> {chatter_group_wire:counter(), chatter_group_wire:net_id()} | none.
life(Id, #state{lives = Lives}) ->
    case Lives of
        #{Id := #life{inc = Inc, net_id = NetId}} -> {Inc, NetId};
        #{} -> none
    end.

%% @doc One entry, live or dead.
-spec entry(id(), name(), key(), state()) -> entry() | none.
entry(Id, Group, Key, State) ->
    case entries(Id, Group, State) of
        #{Key := Entry} -> Entry;
        #{} -> none
    end.

%% @doc All entries of a node in a group, live and dead.
-spec entries(id(), name(), state()) -> #{key() => entry()}.
entries(Id, Group, #state{lives = Lives}) ->
    case Lives of
        #{Id := #life{groups = #{Group := Map}}} -> Map;
        #{} -> #{}
    end.

%% @doc The live entries of a node that pass, as they are sent.
-spec export(id(), filter(), state()) -> life().
export(Id, Filter, #state{lives = Lives}) ->
    #life{inc = Inc, net_id = NetId, groups = Groups} = maps:get(Id, Lives),
    {Id, Inc, NetId,
     [{Group, Entries}
      || {Group, Map} <- maps:to_list(Groups),
         Entries <- [[Pair || {Key, {_, _, {live, _}}} = Pair <- maps:to_list(Map),
                              Filter(Group, Key)]],
         Entries =/= []]}.

%% @doc These entries of a node, live or dead, as they are sent. Those that are not there are left
%% out.
-spec export_keys(id(), [{name(), key()}], state()) -> life().
export_keys(Id, Keys, #state{lives = Lives} = State) ->
    #life{inc = Inc, net_id = NetId} = maps:get(Id, Lives),
    By = maps:groups_from_list(fun({Group, _}) -> Group end, Keys),
    {Id, Inc, NetId,
     [{Group, [{Key, Entry} || {_, Key} <- lists:usort(Of),
                               Entry <- [entry(Id, Group, Key, State)], Entry =/= none]}
      || {Group, Of} <- maps:to_list(By)]}.

%% @doc Equal for two replicas that know the same live entries of a node.
-spec hash(id(), state()) -> chatter_group_wire:hash().
hash(Id, #state{lives = Lives}) ->
    (maps:get(Id, Lives))#life.hash.

%% @doc The same, of the entries that pass.
-spec hash(id(), filter(), state()) -> chatter_group_wire:hash().
hash(Id, Filter, State) ->
    {_, _, _, Groups} = export(Id, Filter, State),
    lists:foldl(fun({Group, Entries}, Hash) ->
                        lists:foldl(fun({Key, Entry}, H) ->
                                            H bxor chatter_group_wire:hash(Group, Key, Entry)
                                    end, Hash, Entries)
                end, 0, Groups).

%% @doc The groups that somebody has a live entry in.
-spec groups(state()) -> [name()].
groups(#state{index = Index}) -> maps:keys(Index).

%% @doc The nodes that have a live entry in a group.
-spec in_group(name(), state()) -> [id()].
in_group(Group, #state{index = Index}) ->
    maps:keys(maps:get(Group, Index, #{})).

%% @doc The groups in which a node has an entry, live or dead.
-spec groups_of(id(), state()) -> [name()].
groups_of(Id, #state{lives = Lives}) ->
    case Lives of
        #{Id := #life{groups = Groups}} -> maps:keys(Groups);
        #{} -> []
    end.

%% @doc The live statements that a group is in another, with whose they are and their age.
-spec subs(state()) -> [{{Parent :: name(), Child :: name(), id()},
                         {Incarnation :: pos_integer(), Version :: pos_integer()}}].
subs(#state{subs = Subs}) -> maps:to_list(Subs).

%% @doc The groups of which a node wants less than all, sorted.
-spec interests(id(), state()) -> chatter_group_wire:interests().
interests(Id, #state{narrow = Narrow}) ->
    lists:sort(maps:to_list(maps:get(Id, Narrow, #{}))).

%% @doc The nodes that want less than all of some group.
-spec narrowed(state()) -> [id()].
narrowed(#state{narrow = Narrow}) -> maps:keys(Narrow).

%% @doc How many live entries a node has in a group.
-spec count(id(), name(), state()) -> non_neg_integer().
count(Id, Group, #state{index = Index}) ->
    maps:get(Id, maps:get(Group, Index, #{}), 0).

%%% ---------------------------------------------------------------------------------------------
%%% The one place where entries change

set_life(Id, Life, #state{lives = Lives} = State) ->
    State#state{lives = Lives#{Id => Life}}.

set_entry(Id, Group, Key, Old, New, #state{lives = Lives} = State) ->
    #life{groups = Groups, hash = Hash, inc = Inc} = Life = maps:get(Id, Lives),
    Map = maps:get(Group, Groups, #{}),
    Map1 = case New of
               none -> maps:remove(Key, Map);
               _ -> Map#{Key => New}
           end,
    Groups1 = if map_size(Map1) =:= 0 -> maps:remove(Group, Groups);
                 true -> Groups#{Group => Map1}
              end,
    Hash1 = Hash bxor live_hash(Group, Key, Old) bxor live_hash(Group, Key, New),
    State1 = set_life(Id, Life#life{groups = Groups1, hash = Hash1}, State),
    State2 = set_index(Id, Group, alive(New) - alive(Old), State1),
    case Key of
        get -> set_narrow(Id, Group, New, State2);
        {sub, Child} -> set_sub({Group, Child, Id}, Inc, New, State2);
        {add, _, _} -> State2
    end.

live_hash(Group, Key, {_, _, {live, _}} = Entry) -> chatter_group_wire:hash(Group, Key, Entry);
live_hash(_, _, _) -> 0.

alive({_, _, {live, _}}) -> 1;
alive(_) -> 0.

set_index(_, _, 0, State) -> State;
set_index(Id, Group, Add, #state{index = Index} = State) ->
    Ids = maps:get(Group, Index, #{}),
    Ids1 = case maps:get(Id, Ids, 0) + Add of
               0 -> maps:remove(Id, Ids);
               Count -> Ids#{Id => Count}
           end,
    State#state{index = if map_size(Ids1) =:= 0 -> maps:remove(Group, Index);
                           true -> Index#{Group => Ids1}
                        end}.

set_sub(Sub, Inc, {V, _, {live, none}}, #state{subs = Subs} = State) ->
    State#state{subs = Subs#{Sub => {Inc, V}}};
set_sub(Sub, _, _, #state{subs = Subs} = State) ->
    State#state{subs = maps:remove(Sub, Subs)}.

set_narrow(Id, Group, {_, _, {live, {_, Ranges}}}, #state{narrow = Narrow} = State)
  when is_list(Ranges) ->
    Of = maps:get(Id, Narrow, #{}),
    State#state{narrow = Narrow#{Id => Of#{Group => Ranges}}};
set_narrow(Id, Group, _, #state{narrow = Narrow} = State) ->
    case Narrow of
        #{Id := #{Group := _} = Of} when map_size(Of) =:= 1 ->
            State#state{narrow = maps:remove(Id, Narrow)};
        #{Id := #{Group := _} = Of} ->
            State#state{narrow = Narrow#{Id := maps:remove(Group, Of)}};
        #{} -> State
    end.
