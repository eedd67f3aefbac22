%% SPDX-License-Identifier: Apache-2.0
%% @doc The process of groups: holds chatter_group_core, drives it with time, messages and what the
%% network tells of nodes, and carries out its effects.
%%
%% It runs while distribution does and takes part from the moment that this node has a name. What
%% the node itself has said is also in a table of chatter_dist_sup, so a crash of this process
%% loses nothing: its successor says it again in a later life and hears the rest from others.
-module(chatter_group_srv).
-behaviour(gen_server).

-export([new_table/0, start_link/1, command/1, query/1, tell/2, subscribe/1,
         unsubscribe/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

%% Rows: {{saved, Group}, Saved}, {inc, Incarnation}, {{subscriber, Group, Pid}}.
-define(TABLE, ?MODULE).

%% How often it is looked whether this node has got a name, once others are there.
-define(NAME_MS, 200).

-record(state, {
    transport :: module(),
    options :: chatter_group_core:options(),
    core = none :: none | chatter_group_core:core(),
    %% Nodes that came before this node had a name.
    early = [] :: [node()],
    timer = none :: none | reference(),
    %% Local members and subscribers, by monitor.
    monitors = #{} :: #{pid() => reference()}
}).

%% @doc Makes the table of what must outlive the process. It is the caller's.
-spec new_table() -> ok.
new_table() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, ordered_set]),
    ok.

%% @doc Starts the process, with the module that carries its messages.
-spec start_link(module()) -> {ok, pid()} | {error, term()} | ignore.
start_link(Transport) ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, Transport, []).

%% @doc Carries out a command of this node; the entries that were written.
-spec command(chatter_group_rules:command()) ->
          {ok, [{chatter_group_wire:key(), chatter_group_wire:entry()}]}
        | {error, not_started | chatter_group_rules:reason()}.
command(Command) -> call({command, Command}).

%% @doc What this makes of the state.
-spec query(fun((chatter_group_core:core()) -> T)) -> {ok, T} | {error, not_started}.
query(Fun) -> call({query, Fun}).

%% @doc Tells what this node has said in a group to nodes at these addresses.
-spec tell(chatter_group_wire:name(), [chatter_group_transport:target()]) ->
          ok | {error, not_started}.
tell(Group, Targets) -> call({tell, Group, Targets}).

%% @doc Has the caller told what happens in a group, or no more.
-spec subscribe(chatter_group_wire:name()) -> ok | {error, not_started}.
subscribe(Group) -> call({subscribe, Group, self()}).

-spec unsubscribe(chatter_group_wire:name()) -> ok | {error, not_started}.
unsubscribe(Group) -> call({unsubscribe, Group, self()}).

call(Request) ->
    try gen_server:call(?MODULE, Request, infinity)
    catch exit:{noproc, _} -> {error, not_started}
    end.

%% ===== gen_server =====

%% @private
-spec init(module()) -> {ok, #state{}} | {stop, term()}.
init(Transport) ->
    case chatter_config:load() of
        {ok, Config} ->
            ok = chatter:monitor_nodes(true),
            ok = Transport:attach(),
            {ok, named(#state{transport = Transport, options = options(Config),
                              early = chatter:nodes()})};
        {error, Line} -> {stop, {shutdown, Line}}
    end.

options(#{group_leave_ms := Leave, group_forget_s := Forget, group_collect_s := Collect,
          group_sync_ms := Sync, max_nodes := Nodes, group_max_groups := Groups,
          group_max_members := Members, group_max_items := Items, group_max_name := Name}) ->
    #{leave_ms => Leave, forget_ms => 1000 * Forget, collect_ms => 1000 * Collect,
      sync_ms => Sync, max_nodes => Nodes, max_groups => Groups, max_members => Members,
      max_items => Items, max_name => Name}.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) -> {reply, term(), #state{}}.
handle_call(Request, From, #state{core = none} = State0) ->
    case named(State0) of
        #state{core = none} = State -> {reply, {error, not_started}, State};
        State -> handle_call(Request, From, State)
    end;
handle_call({command, Command}, _From, State) ->
    {Reply, State1} = carry_out_command(Command, State),
    {reply, Reply, State1};
handle_call({query, Fun}, _From, #state{core = Core} = State) ->
    {reply, {ok, Fun(Core)}, State};
handle_call({tell, Group, Targets}, _From, #state{core = Core, transport = Transport} = State) ->
    {reply, Transport:send(Targets, chatter_group_core:statement(Group, Core)), State};
handle_call({subscribe, Group, Pid}, _From, State) ->
    true = ets:insert(?TABLE, {{subscriber, Group, Pid}}),
    {reply, ok, watch(follow_process(Pid, State))};
handle_call({unsubscribe, Group, Pid}, _From, State) ->
    true = ets:delete(?TABLE, {subscriber, Group, Pid}),
    {reply, ok, watch(State)}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(_, State) ->
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info({chatter, Event, Node}, #state{core = none, early = Early} = State) ->
    Early1 = case Event of
                 node_up -> [Node | Early];
                 node_down -> lists:delete(Node, Early)
             end,
    {noreply, named(State#state{early = Early1})};
handle_info(name, #state{core = none} = State) ->
    {noreply, named(State#state{timer = none})};
handle_info(Message, #state{core = none, transport = Transport} = State) ->
    %% Who has no name yet says and hears nothing.
    _ = Transport:incoming(Message),
    {noreply, State};
handle_info({chatter, node_up, Node}, #state{core = Core} = State) ->
    {noreply, proceed(chatter_group_core:peer_up(atom_to_binary(Node), now_ms(), Core), State)};
handle_info({chatter, node_down, Node}, #state{core = Core} = State) ->
    {noreply, proceed(chatter_group_core:peer_down(atom_to_binary(Node), now_ms(), Core), State)};
handle_info({timeout, Timer, tick}, #state{timer = Timer} = State) ->
    #state{core = Core} = State1 = addressed(State),
    {noreply, proceed(chatter_group_core:tick(now_ms(), Core), State1)};
handle_info({'DOWN', _, process, Pid, _}, State) ->
    {noreply, process_down(Pid, State)};
handle_info(Message, #state{core = Core, transport = Transport} = State) ->
    case Transport:incoming(Message) of
        {ok, Bytes} ->
            {noreply, proceed(chatter_group_core:message(Bytes, now_ms(), Core), State)};
        none -> {noreply, State}
    end.

%% @private
-spec terminate(term(), #state{}) -> ok.
terminate(_, _) -> ok.

now_ms() -> erlang:monotonic_time(millisecond).

carry_out_command(Command, #state{core = Core} = State) ->
    case chatter_group_core:command(Command, now_ms(), Core) of
        {ok, Written, Core1, Effects} ->
            State1 = follow(Command, proceed({Core1, Effects}, State)),
            ok = save(element(2, Command), Core1),
            {{ok, Written}, State1};
        {error, _} = Error -> {Error, State}
    end.

%% ===== this node has a name =====

%% Other nodes are there before the name of this one is.
named(#state{core = none, early = Early, options = Options, transport = Transport} = State) ->
    case node() of
        nonode@nohost when Early =:= []; State#state.timer =/= none -> State;
        nonode@nohost -> State#state{timer = erlang:send_after(?NAME_MS, self(), name)};
        Name ->
            Inc = incarnation(),
            Core = chatter_group_core:new({atom_to_binary(Name), Inc}, Transport:net_id(), Options,
                                          erlang:phash2(Inc), now_ms()),
            Restored = chatter_group_core:restore(saved(), now_ms(), Core),
            Up = lists:foldl(fun(Node, Acc) ->
                                     {Acc1, _} = chatter_group_core:peer_up(
                                                   atom_to_binary(Node), now_ms(), Acc),
                                     Acc1
                             end, Restored, Early),
            Pids = [Pid || [Pid] <- ets:match(?TABLE, {{subscriber, '_', '$1'}})]
                ++ chatter_group_core:processes(Up),
            State1 = lists:foldl(fun follow_process/2, State#state{core = Up, early = []}, Pids),
            #state{core = Watching} = State2 = watch(State1),
            proceed({Watching, []}, State2)
    end.

%% The address may be known some time after the name.
addressed(#state{core = Core, transport = Transport} = State) ->
    case chatter_group_state:life(chatter_group_core:id(Core), chatter_group_core:state(Core)) of
        {_, none} ->
            State#state{core = chatter_group_core:net_id(Transport:net_id(), now_ms(), Core)};
        _ -> State
    end.

%% Later than all before it, also when the clock is set back.
incarnation() ->
    Inc = case ets:lookup(?TABLE, inc) of
              [{inc, Last}] -> max(Last + 1, os:system_time(microsecond));
              [] -> os:system_time(microsecond)
          end,
    true = ets:insert(?TABLE, {inc, Inc}),
    Inc.

saved() ->
    [{Group, Saved} || [Group, Saved] <- ets:match(?TABLE, {{saved, '$1'}, '$2'})].

save(Group, Core) ->
    true = case chatter_group_core:saved(Group, Core) of
               {Holders, []} when map_size(Holders) =:= 0 -> ets:delete(?TABLE, {saved, Group});
               Saved -> ets:insert(?TABLE, {{saved, Group}, Saved})
           end,
    ok.

%% ===== effects =====

proceed({Core, Effects}, #state{timer = Timer} = State) ->
    lists:foreach(fun(Effect) -> carry_out(Effect, State) end, Effects),
    _ = is_reference(Timer) andalso erlang:cancel_timer(Timer),
    At = chatter_group_core:next(Core),
    State#state{core = Core, timer = erlang:start_timer(At, self(), tick, [{abs, true}])}.

carry_out({send, Ids, Bytes}, #state{transport = Transport}) ->
    case lists:append([node_of(Id) || Id <- Ids]) of
        [] -> ok;
        Nodes -> ok = Transport:send(Nodes, Bytes)
    end;
carry_out({event, Group, Event}, _) ->
    Told = {chatter_group, Group, setelement(2, Event, binary_to_atom(element(2, Event)))},
    lists:foreach(fun([Pid]) -> Pid ! Told end, ets:match(?TABLE, {{subscriber, Group, '$1'}})).

%% The network has named every node that is sent to; a message alone makes no atom.
node_of(Id) ->
    try [binary_to_existing_atom(Id)]
    catch error:badarg -> []
    end.

%% ===== local members and subscribers =====

follow({join, _, Pid}, State) when is_pid(Pid) -> follow_process(Pid, State);
follow(_, State) -> State.

follow_process(Pid, #state{monitors = Monitors} = State) ->
    case Monitors of
        #{Pid := _} -> State;
        #{} -> State#state{monitors = Monitors#{Pid => monitor(process, Pid)}}
    end.

watch(#state{core = Core} = State) ->
    Groups = lists:usort([Group || [Group] <- ets:match(?TABLE, {{subscriber, '$1', '_'}})]),
    State#state{core = chatter_group_core:watch(Groups, Core)}.

process_down(Pid, #state{monitors = Monitors, core = Core} = State) ->
    true = ets:match_delete(?TABLE, {{subscriber, '_', Pid}}),
    State1 = watch(State#state{monitors = maps:remove(Pid, Monitors)}),
    lists:foldl(fun(Group, Acc) ->
                        {_, Acc1} = carry_out_command({leave, Group, Pid}, Acc),
                        Acc1
                end, State1, chatter_group_core:held_by(Pid, Core)).
