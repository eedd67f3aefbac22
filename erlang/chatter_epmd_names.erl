%% SPDX-License-Identifier: Apache-2.0
%%
%% The names a registry holds, as a value: who is registered, who was, and which creation
%% comes next. No process; chatter_epmd_registry owns one.
%%
%% A name that is given up stays among the *old* ones, so that its next owner gets the next
%% creation: nodes tell the lives of a node apart by it. A name never seen starts anywhere.
%% A registrant may bring the creation it already has (it lost its registry and found this
%% one); the table then goes on from that.
-module(chatter_epmd_names).

-export([new/2, register/4, unregister/2, stop/2, find/2, names/1, dump/1, count/1, owners/1]).
-export_type([table/0, owner/0]).

%% Creations below 4 mean an old node, 0 "unknown".
-define(MIN_CREATION, 4).
-define(MAX_CREATION, 16#ffffffff).

%% Whoever keeps the registration alive, and the file descriptor that DUMP shows for it.
-type owner() :: {pid(), integer()}.
-record(node, {entry :: chatter_epmd_wire:entry(),
               owner :: owner(),
               creation :: ?MIN_CREATION..?MAX_CREATION,
               seq :: pos_integer()}).
-record(table, {active = #{} :: #{binary() => #node{}},
                owners = #{} :: #{pid() => binary()},
                old = #{} :: #{binary() => #node{}},
                old_order = gb_trees:empty() :: gb_trees:tree(pos_integer(), binary()),
                seq = 1 :: pos_integer(),
                max_names :: pos_integer(),
                max_old_names :: pos_integer()}).
-opaque table() :: #table{}.

%% @doc An empty table with its limits: names in use (more are refused), and old names (the
%% oldest is forgotten).
-spec new(pos_integer(), pos_integer()) -> table().
new(MaxNames, MaxOldNames) -> #table{max_names = MaxNames, max_old_names = MaxOldNames}.

%% @doc Give a name to an owner.
-spec register(chatter_epmd_wire:entry(), owner(), ?MIN_CREATION..?MAX_CREATION, table()) ->
          {ok, ?MIN_CREATION..?MAX_CREATION, table()} |
          {error, bad_name | bad_extra | already_registered | too_many_names}.
register(#{name := Name} = Entry, {Pid, _} = Owner, Random, Table) ->
    case check(Entry, Table) of
        ok ->
            Creation = creation(Entry, Table, Random),
            T = #table{seq = Seq} = forget_old(Name, Table),
            Node = #node{entry = Entry, owner = Owner, creation = Creation, seq = Seq},
            {ok, Creation, T#table{active = (T#table.active)#{Name => Node},
                                   owners = (T#table.owners)#{Pid => Name},
                                   seq = Seq + 1}};
        {error, _} = Error -> Error
    end.

check(#{name := Name, extra := Extra}, #table{active = Active, max_names = Max}) ->
    case {chatter_epmd_wire:is_node_name(Name),
          byte_size(Extra) =< chatter_epmd_wire:max_field_bytes()} of
        {false, _} -> {error, bad_name};
        {_, false} -> {error, bad_extra};
        _ when is_map_key(Name, Active) -> {error, already_registered};
        _ when map_size(Active) >= Max -> {error, too_many_names};
        _ -> ok
    end.

creation(#{name := Name, extra := Extra}, #table{old = Old}, Random) ->
    case {chatter_epmd_wire:decode_extra(Extra), Old} of
        {#{creation := Claimed}, _} -> Claimed;
        {_, #{Name := #node{creation = ?MAX_CREATION}}} -> ?MIN_CREATION;
        {_, #{Name := #node{creation = Last}}} -> Last + 1;
        _ -> Random
    end.

%% @doc The owner is gone, and its name with it.
-spec unregister(pid(), table()) -> table().
unregister(Pid, #table{owners = Owners} = Table) ->
    case Owners of
        #{Pid := Name} -> retire(Name, Table);
        _ -> Table
    end.

%% @doc Take a name from its owner, who is told to the caller.
-spec stop(binary(), table()) -> {ok, pid(), table()} | error.
stop(Name, #table{active = Active} = Table) ->
    case Active of
        #{Name := #node{owner = {Pid, _}}} -> {ok, Pid, retire(Name, Table)};
        _ -> error
    end.

retire(Name, #table{active = Active, owners = Owners, old = Old, old_order = Order,
                    seq = Seq} = Table) ->
    {#node{owner = {Pid, _}} = Node, Rest} = maps:take(Name, Active),
    trim_old(Table#table{active = Rest, owners = maps:remove(Pid, Owners),
                         old = Old#{Name => Node#node{seq = Seq}},
                         old_order = gb_trees:insert(Seq, Name, Order), seq = Seq + 1}).

trim_old(#table{old = Old, old_order = Order, max_old_names = Max} = Table)
  when map_size(Old) > Max ->
    {_, Name, Rest} = gb_trees:take_smallest(Order),
    Table#table{old = maps:remove(Name, Old), old_order = Rest};
trim_old(Table) -> Table.

forget_old(Name, #table{old = Old, old_order = Order} = Table) ->
    case maps:take(Name, Old) of
        {#node{seq = Seq}, Rest} ->
            Table#table{old = Rest, old_order = gb_trees:delete(Seq, Order)};
        error -> Table
    end.

%% @doc What was registered under a name.
-spec find(binary(), table()) -> chatter_epmd_wire:entry() | none.
find(Name, #table{active = Active}) ->
    case Active of
        #{Name := #node{entry = Entry}} -> Entry;
        _ -> none
    end.

%% @doc Names and ports, newest first, as epmd lists them.
-spec names(table()) -> [{binary(), inet:port_number()}].
names(Table) -> [{N, P} || #node{entry = #{name := N, port := P}} <- newest_first(Table)].

%% @doc For DUMP: names in use newest first, old ones oldest first.
-spec dump(table()) -> {[Line], [Line]} when Line :: {binary(), inet:port_number(), integer()}.
dump(#table{old = Old, old_order = Order} = Table) ->
    {[dump_line(N) || N <- newest_first(Table)],
     [dump_line(maps:get(Name, Old)) || Name <- gb_trees:values(Order)]}.

dump_line(#node{entry = #{name := Name, port := Port}, owner = {_, Fd}}) -> {Name, Port, Fd}.

newest_first(#table{active = Active}) ->
    lists:sort(fun(#node{seq = A}, #node{seq = B}) -> A >= B end, maps:values(Active)).

%% @doc How many names are in use.
-spec count(table()) -> non_neg_integer().
count(#table{active = Active}) -> map_size(Active).

%% @doc The processes that keep names alive.
-spec owners(table()) -> [pid()].
owners(#table{owners = Owners}) -> maps:keys(Owners).
