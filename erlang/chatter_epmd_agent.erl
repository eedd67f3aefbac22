%% SPDX-License-Identifier: Apache-2.0
%%
%% Keeps the name of this node registered on this host, whoever serves the registry there:
%%
%%     try ── connect ──► somebody answers ─► register, hold the socket
%%      ▲        │                                  │
%%      │        └► refused: serve it ourselves ─►──┤ (register there, by TCP like all others)
%%      │                │                          │
%%      │                └► port taken: a moment    ▼
%%      └────────────────── later try again ◄── the socket closes: the server is gone
%%
%% So when the server of a host dies, all agents see it at the same moment, wait a random
%% moment, and race for the port. One wins, the others find it there. The node keeps its
%% creation, and tells it to the new server (see chatter_epmd_wire:encode_extra/1).
%%
%% The process does nothing that can crash it knowingly; what it must not forget is in a table
%% of its supervisor. See chatter_epmd_sup for the picture of the processes.
-module(chatter_epmd_agent).
-behaviour(gen_server).

-export([new_table/0, start_link/1, register/3, info/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% Of one attempt, to connect and to be answered: a loopback connection.
-define(ATTEMPT_MS, 5000).
%% Attempts are this far apart (and a random share of it) while the nodes sort out who serves.
-define(RACE_MS, 20).
%% So long is the port being refused and taken, or the own name being still there, a matter of
%% timing. Then it is a failure.
-define(SETTLE_MS, 2000).
%% Attempts after a failure: twice as long each time, up to the maximum.
-define(BACKOFF_MIN_MS, 500).
-define(BACKOFF_MAX_MS, 10000).
%% After a KILL_REQ somebody means to start another epmd: let them.
-define(KILLED_MS, 1000).

%% As erl_epmd registers: a visible node, over TCP.
-define(NODE_TYPE, $M).
-define(PROTOCOL, 0).
-define(DIST_VERSION, 6).

-type kind() :: stock | chatter.
-record(state, {table :: ets:tab(),
                name :: undefined | binary(),
                ports = #{} :: #{kind() => inet:port_number()},
                creation :: undefined | non_neg_integer(),
                socket :: undefined | gen_tcp:socket(),
                waiting = [] :: [{gen_server:from(), kind()}],
                timer :: undefined | reference(),
                settle_until = 0 :: integer(),
                backoff = ?BACKOFF_MIN_MS :: pos_integer(),
                failure :: term()}).

%% @doc The table in which the agent's successor finds what to register.
-spec new_table() -> ets:tab().
new_table() -> ets:new(?MODULE, [public, set]).

%% @doc Start the agent of this node.
-spec start_link(ets:tab()) -> {ok, pid()} | {error, term()}.
start_link(Table) -> gen_server:start_link({local, ?MODULE}, ?MODULE, Table, []).

%% @doc Register a listener of this node, of Chatter or another. A node may have one of each.
-spec register(binary(), inet:port_number(), kind()) -> {ok, pos_integer()} | {error, term()}.
register(Name, Port, Kind) ->
    gen_server:call(?MODULE, {register, Name, Port, Kind}, infinity).

%% @doc Live figures.
-spec info() -> #{name := binary() | undefined, registered := boolean(), _ => _}.
info() -> gen_server:call(?MODULE, info, infinity).

%%% gen_server ---------------------------------------------------------------------------

%% @private
-spec init(ets:tab()) -> {ok, #state{}}.
init(Table) ->
    case ets:lookup(Table, registration) of
        [{registration, Name, Ports, Creation}] ->
            {ok, race(#state{table = Table, name = Name, ports = Ports, creation = Creation})};
        [] -> {ok, #state{table = Table}}
    end.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) ->
          {reply, term(), #state{}} | {noreply, #state{}}.
handle_call({register, Name, Port, Kind}, From, State) ->
    handle_register(Name, Port, Kind, From, State);
handle_call(info, _From, #state{name = Name, ports = Ports, creation = Creation} = State) ->
    {reply, #{name => Name, ports => Ports, creation => Creation,
              registered => State#state.socket =/= undefined, failure => State#state.failure},
     State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(_, State) -> {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info({timeout, Timer, attempt}, #state{timer = Timer} = State) ->
    {noreply, attempt(State#state{timer = undefined})};
handle_info({tcp_closed, Socket}, #state{socket = Socket} = State) ->
    {noreply, race(State#state{socket = undefined})};
handle_info({tcp_error, Socket, _}, #state{socket = Socket} = State) ->
    {noreply, race(close(State))};
handle_info({tcp, Socket, _}, #state{socket = Socket} = State) ->
    {noreply, race(close(State))};
handle_info({chatter_epmd_registry, _Pid, killed}, #state{name = Name} = State)
  when Name =/= undefined ->
    {noreply, attempt_in(?KILLED_MS, settling(close(State)))};
handle_info(_, State) ->
    {noreply, State}.

%%% Requests of the node -----------------------------------------------------------------

handle_register(Name, Port, Kind, From, #state{name = undefined} = State) ->
    start_registration(Kind, From, State#state{name = Name, ports = #{Kind => Port}});
handle_register(Name, Port, Kind, From, #state{name = Name, ports = Ports} = State) ->
    case Ports of
        #{Kind := Port} when State#state.creation =/= undefined ->
            {reply, {ok, State#state.creation}, State};
        #{Kind := Other} when Other =/= Port ->
            {reply, {error, already_registered}, State};
        _ -> start_registration(Kind, From, State#state{ports = Ports#{Kind => Port}})
    end;
handle_register(_Name, _Port, _Kind, _From, State) ->
    {reply, {error, already_registered}, State}.

%% With a second listener the name is given up and taken again at once, under one creation.
start_registration(Kind, From, #state{waiting = Waiting} = State) ->
    Fresh = settling(close(State#state{waiting = [{From, Kind} | Waiting]})),
    {noreply, attempt(cancel(Fresh))}.

%%% Attempts -----------------------------------------------------------------------------

attempt(#state{} = State) ->
    case chatter_epmd_client:register(chatter_epmd_config:port(), entry(State), ?ATTEMPT_MS) of
        {ok, Socket, Creation} -> registered(Socket, Creation, State);
        refused -> unsettled(duplicate_name, State);
        {error, econnrefused} -> serve(State);
        {error, {not_epmd, closed}} -> unsettled({not_epmd, closed}, State);
        {error, Reason} -> failed(Reason, State)
    end.

serve(State) ->
    try chatter_epmd_registry:serve(chatter_epmd_registry, chatter_epmd_config:options()) of
        ok -> attempt(State);
        {error, already_serving} -> unsettled(econnrefused, State);
        {error, eaddrinuse} -> unsettled(eaddrinuse, State);
        {error, Reason} -> failed({cannot_serve, Reason}, State)
    catch exit:_ -> unsettled(registry_down, State)
    end.

registered(Socket, Creation, #state{} = State) ->
    log_recovery(State),
    Own = own_creation(State#state.creation, Creation),
    Registered = State#state{socket = Socket, creation = Own, backoff = ?BACKOFF_MIN_MS,
                             failure = undefined},
    remember(answer_all({ok, Own}, Registered)).

%% A node has one creation for its life. Old servers only know three of them.
own_creation(undefined, Given) when Given >= 4 -> Given;
own_creation(undefined, _) -> 3 + rand:uniform(16#ffffffff - 3);
own_creation(Own, _) -> Own.

%% Something that goes away by itself, if it does so soon.
unsettled(duplicate_name, #state{creation = undefined} = State) ->
    failed(duplicate_name, State);
unsettled(Reason, #state{settle_until = Until} = State) ->
    case now_ms() < Until of
        true -> attempt_in(jitter(), State);
        false -> failed(Reason, State)
    end.

failed(Reason, #state{waiting = []} = State) ->
    Wait = State#state.backoff,
    log_failure(Reason, Wait, State),
    attempt_in(Wait, State#state{failure = Reason, backoff = min(2 * Wait, ?BACKOFF_MAX_MS)});
failed(Reason, #state{waiting = Waiting, creation = Creation} = State) ->
    case Creation =:= undefined andalso not boots_anyway(Reason, Waiting) of
        true -> answer_all({error, Reason}, forget(State));
        false ->
            Own = own_creation(Creation, 0),
            failed(Reason, remember(answer_all({ok, Own}, State#state{creation = Own})))
    end.

%% Chatter needs no registry to reach others, and will get its name in as soon as it can. Nodes
%% of other carriers cannot be reached without, so their boot fails, as with erl_epmd.
boots_anyway(duplicate_name, _) -> false;
boots_anyway(_, Waiting) -> lists:keymember(chatter, 2, Waiting).

answer_all(Answer, #state{waiting = Waiting} = State) ->
    lists:foreach(fun({From, _}) -> gen_server:reply(From, Answer) end, Waiting),
    State#state{waiting = []}.

%% What is sent of this node. Stock nodes go to the port, so it is that of a stock carrier.
entry(#state{name = Name, ports = Ports, creation = Creation}) ->
    Port = maps:get(stock, Ports, maps:get(chatter, Ports, 0)),
    Extra = [{chatter_port, P} || #{chatter := P} <- [Ports]]
        ++ [{creation, Creation} || Creation =/= undefined],
    #{name => Name, port => Port, node_type => ?NODE_TYPE, protocol => ?PROTOCOL,
      high => ?DIST_VERSION, low => ?DIST_VERSION,
      extra => chatter_epmd_wire:encode_extra(maps:from_list(Extra))}.

%%% Timing -------------------------------------------------------------------------------

race(State) -> attempt_in(jitter(), settling(State)).

settling(State) -> State#state{settle_until = now_ms() + ?SETTLE_MS}.

jitter() -> rand:uniform(?RACE_MS).

attempt_in(Ms, State) ->
    Cancelled = cancel(State),
    Cancelled#state{timer = erlang:start_timer(Ms, self(), attempt)}.

cancel(#state{timer = undefined} = State) -> State;
cancel(#state{timer = Timer} = State) ->
    _ = erlang:cancel_timer(Timer),
    State#state{timer = undefined}.

now_ms() -> erlang:monotonic_time(millisecond).

%%% State --------------------------------------------------------------------------------

close(#state{socket = undefined} = State) -> State;
close(#state{socket = Socket} = State) ->
    gen_tcp:close(Socket),
    State#state{socket = undefined}.

remember(#state{table = Table, name = Name, ports = Ports, creation = Creation} = State) ->
    true = ets:insert(Table, {registration, Name, Ports, Creation}),
    State.

forget(State) -> State#state{name = undefined, ports = #{}}.

log_failure(Reason, _Wait, #state{failure = Reason}) -> ok;
log_failure(Reason, Wait, #state{name = Name}) ->
    logger:warning("chatter_epmd: cannot register ~ts at port ~b: ~ts; trying again in ~b ms "
                   "and later", [Name, chatter_epmd_config:port(), describe(Reason), Wait]).

log_recovery(#state{failure = undefined}) -> ok;
log_recovery(#state{name = Name}) ->
    logger:notice("chatter_epmd: ~ts is now registered at port ~b",
                  [Name, chatter_epmd_config:port()]).

describe(duplicate_name) -> "another node has the name";
describe({not_epmd, _}) -> "what listens there is not an epmd";
describe({cannot_serve, Reason}) -> ["cannot listen there: ", posix(Reason)];
describe(Reason) -> posix(Reason).

posix(Reason) when is_atom(Reason) -> [inet:format_error(Reason), " (", atom_to_list(Reason), ")"];
posix(Reason) -> io_lib:format("~0p", [Reason]).
