%% SPDX-License-Identifier: Apache-2.0
%% @doc One node's copy of what all have said, and the right to say something itself. No process, no
%% clock.
%%
%% Only the node itself changes its entries. What others say of it is compared with what it knows:
%% should they know something else, it says so again under a newer version, and that ends it. So an
%% entry whose dead form has been collected everywhere does not live again for long when somebody
%% comes back who still has it alive.
-module(chatter_group_replica).

-export([new/3, write/4, renew/3, merge/4, keep/2, collect/2, forget/2, take_pending/1]).
-export([id/1, life/1, state/1, is_pending/1, dead/1]).

-export_type([replica/0]).

-type id() :: chatter_group_wire:id().
-type name() :: chatter_group_wire:name().
-type key() :: chatter_group_wire:key().
-type ms() :: integer().
-type change() :: chatter_group_state:change().

-record(replica, {
    id :: id(),
    inc :: chatter_group_wire:counter(),
    %% The last version that was given to an entry in this life.
    version = 0 :: chatter_group_wire:counter(),
    state :: chatter_group_state:state(),
    %% Own entries that have changed and that nobody has been told.
    pending = #{} :: #{{name(), key()} => true},
    %% Since when dead entries are known.
    dead = #{} :: #{{id(), name(), key()} => ms()}
}).
-opaque replica() :: #replica{}.

%% So many dead entries are kept; then the older half goes before its time.
-define(MAX_DEAD, 65536).

%% @doc A node in a life that none before it has had the number of.
-spec new(id(), chatter_group_wire:counter(), chatter_group_wire:net_id()) -> replica().
new(Id, Inc, NetId) ->
    #replica{id = Id, inc = Inc,
             state = chatter_group_state:renew(Id, Inc, NetId, chatter_group_state:new())}.

-spec id(replica()) -> id().
id(#replica{id = Id}) -> Id.

%% @doc Incarnation and address of this node.
-spec life(replica()) -> {chatter_group_wire:counter(), chatter_group_wire:net_id()}.
life(#replica{id = Id, state = State}) -> chatter_group_state:life(Id, State).

-spec state(replica()) -> chatter_group_state:state().
state(#replica{state = State}) -> State.

%% @doc Whether something is to be told.
-spec is_pending(replica()) -> boolean().
is_pending(#replica{pending = Pending}) -> map_size(Pending) > 0.

%% @doc How many dead entries are kept.
-spec dead(replica()) -> non_neg_integer().
dead(#replica{dead = Dead}) -> map_size(Dead).

%% @doc Says something. Each entry has a version of its own.
-spec write(name(), [{key(), Clock :: chatter_group_wire:counter(),
                      chatter_group_wire:value()}], ms(), replica()) -> {replica(), [change()]}.
write(Group, Writes, Now, Replica) ->
    {Replica1, Changes} =
        lists:foldl(fun(Write, {Acc, Done}) ->
                            {Acc1, Change} = write_one(Group, Write, Acc),
                            {Acc1, [Change | Done]}
                    end, {Replica, []}, Writes),
    InOrder = lists:reverse(Changes),
    {note(InOrder, Now, Replica1), InOrder}.

write_one(Group, {Key, Clock, Value}, #replica{id = Id, state = State, version = V,
                                               pending = Pending} = Replica) ->
    Old = case chatter_group_state:entry(Id, Group, Key, State) of
              {_, _, Was} -> Was;
              none -> none
          end,
    State1 = chatter_group_state:put(Id, Group, Key, {V + 1, Clock, Value}, State),
    {Replica#replica{state = State1, version = V + 1, pending = Pending#{{Group, Key} => true}},
     {Id, Group, Key, Old, Value}}.

%% @doc Goes on in a life with this number, and tells all again.
-spec renew(chatter_group_wire:counter(), chatter_group_wire:net_id(), replica()) -> replica().
renew(Inc, NetId, #replica{id = Id, state = State} = Replica) ->
    State1 = chatter_group_state:renew(Id, Inc, NetId, State),
    Keys = [{Group, Key} || Group <- chatter_group_state:groups_of(Id, State1),
                            Key <- maps:keys(chatter_group_state:entries(Id, Group, State1))],
    Replica#replica{inc = Inc, state = State1,
                    pending = maps:from_list([{Key, true} || Key <- Keys])}.

%% @doc What is to be told, as of now; after that nothing is.
-spec take_pending(replica()) -> {chatter_group_wire:life(), replica()}.
take_pending(#replica{id = Id, state = State, pending = Pending} = Replica) ->
    {chatter_group_state:export_keys(Id, maps:keys(Pending), State),
     Replica#replica{pending = #{}}}.

%% @doc Takes in what others have told, as far as it passes the interests of this node. Losers are
%% what they do not know yet.
-spec merge([chatter_group_wire:life()], chatter_group_wire:interests(), ms(), replica()) ->
          {replica(), [change()], [chatter_group_state:loser()]}.
merge(Lives, Interests, Now, #replica{id = Id} = Replica) ->
    {Own, Others} = lists:partition(fun(Life) -> element(1, Life) =:= Id end, Lives),
    {#replica{state = State} = Replica1, Corrected} =
        lists:foldl(fun(Life, Acc) -> defend(Life, Now, Acc) end, {Replica, []}, Own),
    Wanted = [wanted(Life, Interests) || Life <- Others],
    {State1, Changes, Losers} = chatter_group_state:merge(Wanted, State),
    {note(Changes, Now, Replica1#replica{state = State1}), Changes, Corrected ++ Losers}.

wanted(Life, []) -> Life;
wanted({Id, Inc, NetId, Groups}, Interests) ->
    {Id, Inc, NetId,
     [{Group, [E || {Key, _} = E <- Entries, chatter_group_sync:passes(Interests, Group, Key)]}
      || {Group, Entries} <- Groups]}.

%% A life of this name that is later than this one was another's, or the clock was set back: it
%% must not win.
defend({_, Inc, _, _}, _, {#replica{inc = Mine} = Replica, Losers}) when Inc > Mine ->
    {_, NetId} = life(Replica),
    {renew(Inc + 1, NetId, Replica), Losers};
defend({Id, Inc, _, _}, _, {#replica{inc = Mine} = Replica, Losers}) when Inc < Mine ->
    {Replica, [{Id, life} | Losers]};
defend({_, _, _, Groups}, Now, Acc) ->
    lists:foldl(fun({Group, Key, Entry}, Acc1) -> defend_entry(Group, Key, Entry, Now, Acc1) end,
                Acc, [{Group, Key, Entry} || {Group, Entries} <- Groups, {Key, Entry} <- Entries]).

defend_entry(Group, Key, {V, _, {Life, Content}} = Entry, Now, {Replica, Losers}) ->
    #replica{id = Id, state = State, version = Last} = Replica,
    Above = Replica#replica{version = max(Last, V)},
    case chatter_group_state:entry(Id, Group, Key, State) of
        Entry -> {Replica, Losers};
        {Mine, _, _} when Mine > V -> {Replica, [{Id, Group, Key} | Losers]};
        {_, Clock, Value} -> {rewrite(Group, {Key, Clock, Value}, Now, Above), Losers};
        none when Life =:= dead -> {Above, Losers};
        %% What this node does not remember was collected.
        none -> {rewrite(Group, {Key, 0, {dead, gone(Key, Content)}}, Now, Above), Losers}
    end.

gone(get, _) -> {false, all};
gone(_, Content) -> Content.

rewrite(Group, Write, Now, Replica) ->
    {Replica1, _} = write(Group, [Write], Now, Replica),
    Replica1.

%%% ---------------------------------------------------------------------------------------------
%%% What is forgotten

%% @doc Forgets what others have said of a group that these interests do not want.
-spec keep({name(), chatter_group_wire:interests()}, replica()) -> replica().
keep({Group, Interests}, #replica{id = Id, state = State} = Replica) ->
    Wanted = fun(G, Key) -> chatter_group_sync:passes(Interests, G, Key) end,
    Replica#replica{state = chatter_group_state:keep({Group, Wanted}, Id, State)}.

%% @doc Forgets the dead entries that are known since then or longer.
-spec collect(ms(), replica()) -> replica().
collect(Since, #replica{dead = Dead} = Replica) ->
    collect_keys([Key || {Key, At} <- maps:to_list(Dead), At =< Since], Replica).

collect_keys(Keys, #replica{state = State, dead = Dead} = Replica) ->
    Replica#replica{dead = maps:without(Keys, Dead),
                    state = lists:foldl(fun({Id, Group, Key}, S) ->
                                                chatter_group_state:collect(Id, Group, Key, S)
                                        end, State, Keys)}.

%% @doc Forgets another node.
-spec forget(id(), replica()) -> replica().
forget(Id, #replica{state = State, dead = Dead} = Replica) ->
    {State1, _} = chatter_group_state:drop(Id, State),
    Replica#replica{state = State1,
                    dead = maps:filter(fun({Of, _, _}, _) -> Of =/= Id end, Dead)}.

%% In the order in which they were made: an entry that ends with a former life may be dead in the
%% next one.
note(Changes, Now, #replica{dead = Dead} = Replica) ->
    Dead1 = lists:foldl(fun({Id, Group, Key, _, {dead, _}}, D) -> D#{{Id, Group, Key} => Now};
                           ({Id, Group, Key, _, _}, D) -> maps:remove({Id, Group, Key}, D)
                        end, Dead, Changes),
    make_room(Replica#replica{dead = Dead1}).

make_room(#replica{dead = Dead} = Replica) when map_size(Dead) =< ?MAX_DEAD -> Replica;
make_room(#replica{dead = Dead} = Replica) ->
    Aged = lists:sort([{At, Key} || {Key, At} <- maps:to_list(Dead)]),
    collect_keys([Key || {_, Key} <- lists:sublist(Aged, ?MAX_DEAD div 2)], Replica).
