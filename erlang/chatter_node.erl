%% SPDX-License-Identifier: Apache-2.0
%% @doc Owns the native node: starts and stops it, resolves the neighbours that it wants to dial,
%% hands its log lines to `logger'. The data of connections does not pass here.
%%
%% A crash of this process harms no link and no connection: its successor finds the native node
%% running and takes over.
-module(chatter_node).
-behaviour(gen_server).

-export([start_link/0, start/2, ensure_name/1, stop/0, links/0, setting/2, dial/1, await/2,
         claims/3, peer_address/1, monitor_nodes/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

%% Spawned, and asked by chatter_epmd.
-export([find_port/2, find_addresses/1, discovered/2]).

-record(state, {
    config :: chatter_config:config() | undefined,
    %% Who waits for a route to which node.
    waiting = [] :: [{node(), gen_server:from(), reference()}],
    %% When a wait for a route to a node was last in vain.
    missed = #{} :: #{node() => integer()},
    %% Which process resolves which neighbour, and which neighbours are being dialled.
    monitors = #{} :: #{reference() =>
                            {non_neg_integer(), non_neg_integer(), native_spec()} | native_spec()},
    dialled = #{} :: #{non_neg_integer() => native_spec()},
    %% Where neighbours were found last: for when nobody answers who could say where they are.
    found = #{} :: #{native_spec() => [native_address()]},
    %% The monitors of those who are told which nodes are up.
    subscribers = #{} :: #{reference() => pid()},
    %% The full name; "" if not known yet, `dynamic' if the first peer gives it.
    name = "" :: string() | dynamic
}).

%% Where `links/0' and `claims/3' find what they need without asking the process.
-define(CONFIG, {chatter, config}).
-define(PUBLIC, [links, neighbours, drain_ms, message_wait_ms, message_idle_ms, max_message,
                 max_message_channels, max_calls]).

%% A node that was waited for in vain is not waited for again for so long: who asks again and
%% again for a node that is not there is told at once most of the time.
-define(MISSED_MS, 1000).

%% After so long without an answer, a neighbour is dialled where it was found last: what cuts off
%% the neighbour cuts off the registry of its host, and mostly both return together.
-define(FOUND_MS, 300).

%% So many are remembered; then all are forgotten, as one is only a help.
-define(MAX_FOUND, 1024).

%% How long claims/3 may take to ask the registry of a host, in a node with several carriers.
-define(CLAIM_MS, 300).

-type native_address() :: {binary(), inet:port_number()}.
-type native_spec() :: {name, binary()} | {address, binary(), inet:port_number()}.

%% @doc Starts the process. A configuration that is refused, or a native library that cannot be
%% loaded, ends the boot of a node with one line; later it is an error of `net_kernel:start/2'.
-spec start_link() -> {ok, pid()} | {error, term()} | ignore.
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% @doc Starts the native node under a full name ("" for none yet); the port it listens on, 0 if it
%% does not. One that runs already under another name is stopped first.
-spec start(string(), boolean()) -> {ok, inet:port_number()} | {error, string()}.
start(FullName, Listen) ->
    gen_server:call(?MODULE, {start, FullName, Listen}, infinity).

%% @doc Gives a native node that was started without a name the one that it has by now.
-spec ensure_name(string()) -> {ok, inet:port_number()} | {error, string()}.
ensure_name(FullName) ->
    gen_server:call(?MODULE, {ensure_name, FullName}, infinity).

%% @doc Stops the native node, after a moment for queued data to leave.
-spec stop() -> ok.
stop() ->
    gen_server:call(?MODULE, stop, infinity).

%% @doc The configuration key `links'.
-spec links() -> auto | static.
links() ->
    setting(links, auto).

%% @doc The value of one of the keys that other modules need; `Default' before the first start.
-spec setting(atom(), T) -> T.
setting(Key, Default) ->
    maps:get(Key, persistent_term:get(?CONFIG, #{}), Default).

%% @doc Has a link to a node dialled, once.
-spec dial(node()) -> ok | {error, not_started | busy}.
dial(Node) ->
    chatter_nif:connect({name, atom_to_binary(Node)}, 0, false).

%% @doc Waits until there is a route to a node. `unreachable': nobody knows its address.
-spec await(node(), timeout()) -> ok | {error, unreachable | timeout}.
await(Node, Timeout) ->
    gen_server:call(?MODULE, {await, Node, Timeout}, infinity).

%% @doc Whether Chatter is the carrier for a node: the answer of `chatter_dist:select/1'. If
%% Chatter is the only carrier it is for all; else for those that the network knows, that are
%% configured as neighbours, or that the registry of their host knows as nodes of Chatter.
-spec claims(node(), string(), string()) -> boolean().
claims(Node, Name, Host) ->
    only_carrier()
        orelse chatter_nif:is_reachable(atom_to_binary(Node))
        orelse is_neighbour(Node)
        orelse (links() =:= auto andalso is_registered(Name, Host)).

only_carrier() ->
    case init:get_argument(proto_dist) of
        {ok, [Protos]} -> length(Protos) =< 1;
        _ -> true
    end.

is_neighbour(Node) ->
    Neighbours = maps:get(neighbours, persistent_term:get(?CONFIG, #{}), []),
    lists:any(fun(#{spec := Spec}) -> Spec =:= {name, Node} end, Neighbours).

%% net_kernel is waiting: a registry that does not answer at once does not know.
is_registered(Name, Host) ->
    case net_kernel:epmd_module() of
        chatter_epmd ->
            {Pid, Ref} = spawn_monitor(?MODULE, find_port, [Name, Host]),
            receive
                {'DOWN', Ref, process, Pid, {found, {ok, _}}} -> true;
                {'DOWN', Ref, process, Pid, _} -> false
            after ?CLAIM_MS ->
                erlang:demonitor(Ref, [flush]),
                exit(Pid, kill),
                false
            end;
        _ -> false
    end.

%% @doc The address of the link that leads to a node, as far as it is known.
-spec peer_address(node()) -> {inet:ip_address(), inet:port_number()}.
peer_address(Node) ->
    case chatter_nif:address(atom_to_binary(Node)) of
        {<<A, B, C, D>>, Port} -> {{A, B, C, D}, Port};
        {<<_:128>> = Ip, Port} -> {list_to_tuple([Word || <<Word:16>> <= Ip]), Port};
        none -> {{0, 0, 0, 0}, 0}
    end.

%% @doc Has the calling process told which nodes the network can reach, or no more.
-spec monitor_nodes(boolean()) -> ok | {error, not_started}.
monitor_nodes(On) ->
    try gen_server:call(?MODULE, {monitor_nodes, On, self()}, infinity)
    catch exit:{noproc, _} -> {error, not_started}
    end.

%% ===== gen_server =====

%% @private
-spec init([]) -> {ok, #state{}} | {stop, term()}.
init([]) ->
    %% For terminate/2: a node that does not listen is not closed by net_kernel.
    process_flag(trap_exit, true),
    case prepare() of
        {ok, Config} ->
            ok = chatter_nif:set_log_level(maps:get(log_level, Config)),
            ok = chatter_epmd:set_source(fun ?MODULE:discovered/2),
            %% After a crash the native node still runs, and events wait for a taker.
            _ = chatter_nif:set_owner(),
            ok = chatter_settle:prepare(),
            ok = chatter_monitors:now_up(chatter_nif:nodes()),
            Subscribers = maps:from_list([{monitor(process, Pid), Pid}
                                          || Pid <- chatter_monitors:subscribers()]),
            {ok, #state{config = Config, subscribers = Subscribers}};
        {error, Line} ->
            refuse(Line)
    end.

prepare() ->
    case chatter_config:load() of
        {ok, Config} ->
            case chatter_nif:load() of
                ok ->
                    Public = maps:with(?PUBLIC, Config),
                    persistent_term:put(?CONFIG, Public),
                    {ok, Config};
                {error, Line} -> {error, "chatter: " ++ Line}
            end;
        {error, Line} -> {error, Line}
    end.

%% A node that boots says why it cannot and stops. `logger' and `user' are not there yet.
refuse(Line) ->
    case init:get_status() of
        {starting, _} -> fatal(Line);
        _ -> {stop, {shutdown, unicode:characters_to_list(Line)}}
    end.

-spec fatal(unicode:chardata()) -> no_return().
fatal(Line) ->
    Port = open_port({fd, 0, 2}, [out]),
    true = port_command(Port, unicode:characters_to_binary([Line, $\n])),
    halt(1, [{flush, true}]).

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) ->
          {reply, term(), #state{}} | {noreply, #state{}}.
handle_call({start, FullName, Listen}, _From, State) ->
    _ = chatter_nif:node_stop(0),
    ok = chatter_monitors:all_down(),
    case chatter_nif:node_start(native_config(FullName, Listen, State#state.config)) of
        {ok, Props} ->
            %% From here on the silence of chatter_pulse counts.
            ok = chatter_nif:pulse(),
            ok = chatter_broadcast:own(),
            ok = connect_neighbours(State#state.config),
            Port = proplists:get_value(port, Props),
            {reply, {ok, if is_integer(Port) -> Port; true -> 0 end}, State#state{name = FullName}};
        {error, Line} ->
            Text = "chatter: " ++ unicode:characters_to_list(Line),
            case init:get_status() of
                {starting, _} -> fatal(Text);
                _ -> {reply, {error, Text}, State}
            end
    end;
handle_call({ensure_name, "undefined@" ++ _}, _From, #state{name = ""} = State) ->
    {reply, {ok, 0}, State#state{name = dynamic}};
handle_call({ensure_name, FullName}, From, #state{name = ""} = State) ->
    %% The name was not known when the node started without listening; nothing has used it yet.
    handle_call({start, FullName, false}, From, State);
handle_call({ensure_name, _}, _From, State) ->
    {reply, {ok, 0}, State};
handle_call(stop, _From, State) ->
    ok = stop_native(State),
    {reply, ok, State};
handle_call({monitor_nodes, true, Pid}, _From, #state{subscribers = Subscribers} = State) ->
    case chatter_monitors:subscribe(Pid) of
        true ->
            Ref = monitor(process, Pid),
            {reply, ok, State#state{subscribers = Subscribers#{Ref => Pid}}};
        false -> {reply, ok, State}
    end;
handle_call({monitor_nodes, false, Pid}, _From, State) ->
    Of = maps:filter(fun(_, Other) -> Other =:= Pid end, State#state.subscribers),
    lists:foreach(fun(Ref) -> demonitor(Ref, [flush]) end, maps:keys(Of)),
    ok = chatter_monitors:unsubscribe(Pid),
    Subscribers = maps:without(maps:keys(Of), State#state.subscribers),
    {reply, ok, State#state{subscribers = Subscribers}};
handle_call({await, Node, Timeout}, From, State) ->
    case chatter_nif:is_reachable(atom_to_binary(Node)) of
        true -> {reply, ok, State};
        false ->
            case links() =:= static andalso maps:is_key(Node, missed(State)) of
                true -> {reply, {error, timeout}, State};
                false ->
                    Timer = erlang:start_timer(Timeout, self(), {await, From}),
                    {noreply, State#state{waiting = [{Node, From, Timer} | State#state.waiting]}}
            end
    end.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(_, State) ->
    {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}}.
handle_info({chatter_event, Event}, State) ->
    {noreply, handle_event(Event, State)};
handle_info({chatter_log, Level, Line}, State) ->
    logger:log(Level, "chatter: ~ts", [Line], #{domain => [chatter]}),
    {noreply, State};
handle_info({timeout, Timer, {await, From}}, State) ->
    case lists:keytake(Timer, 3, State#state.waiting) of
        {value, {Node, _, _}, Waiting} ->
            %% What says that it is there may be behind this message.
            case chatter_nif:is_reachable(atom_to_binary(Node)) of
                true ->
                    gen_server:reply(From, ok),
                    {noreply, State#state{waiting = Waiting}};
                false ->
                    gen_server:reply(From, {error, timeout}),
                    Missed = (missed(State))#{Node => erlang:monotonic_time(millisecond)},
                    {noreply, State#state{waiting = Waiting, missed = Missed}}
            end;
        false -> {noreply, State}
    end;
handle_info({timeout, _, {find, Ref}}, #state{monitors = Monitors, found = Found} = State) ->
    case Monitors of
        #{Ref := {Id, Seq, Spec}} when is_map_key(Spec, Found) ->
            %% What is found after all is for the next time.
            State1 = State#state{monitors = Monitors#{Ref := Spec}},
            {noreply, resolved(Id, Seq, Spec, {addresses, maps:get(Spec, Found)}, State1)};
        #{} -> {noreply, State}
    end;
handle_info({'DOWN', Ref, process, _, Reason}, State) ->
    case maps:take(Ref, State#state.monitors) of
        {{Id, Seq, Spec}, Monitors} ->
            {noreply, resolved(Id, Seq, Spec, Reason, State#state{monitors = Monitors})};
        {Spec, Monitors} ->
            {noreply, found(Spec, Reason, State#state{monitors = Monitors})};
        error -> {noreply, subscriber_down(Ref, State)}
    end;
handle_info(_, State) ->
    {noreply, State}.

%% @private
-spec terminate(term(), #state{}) -> ok.
terminate(shutdown, State) ->
    %% Distribution stops; net_kernel has closed, or never listened.
    stop_native(State);
terminate(_, _) ->
    ok.

stop_native(#state{config = Config}) ->
    ok = chatter_nif:node_stop(maps:get(drain_ms, Config)),
    %% What the native node said last comes too late, and then says nothing new.
    chatter_monitors:all_down().

%% A node without a name is no atom.
peer_node(<<>>) -> <<>>;
peer_node(Name) -> binary_to_atom(Name).

subscriber_down(Ref, State) ->
    case maps:take(Ref, State#state.subscribers) of
        {Pid, Subscribers} ->
            ok = chatter_monitors:unsubscribe(Pid),
            State#state{subscribers = Subscribers};
        error -> State
    end.

%% ===== events =====

handle_event({dial, Id, Spec, Seq}, State) ->
    {_, Ref} = spawn_monitor(?MODULE, find_addresses, [Spec]),
    _ = erlang:start_timer(?FOUND_MS, self(), {find, Ref}),
    State#state{monitors = (State#state.monitors)#{Ref => {Id, Seq, Spec}}};
handle_event({Event, Name}, State0) when Event =:= node_up; Event =:= node_found ->
    ok = chatter_monitors:node_up(Name),
    Dialled = maps:filter(fun(_, Spec) -> Spec =/= {name, Name} end, State0#state.dialled),
    State = State0#state{dialled = Dialled},
    %% The second: a route is there again before the node was given up.
    {Up, Waiting} = lists:partition(fun({Node, _, _}) -> atom_to_binary(Node) =:= Name end,
                                    State#state.waiting),
    lists:foreach(fun({_, From, Timer}) ->
                          _ = erlang:cancel_timer(Timer),
                          gen_server:reply(From, ok)
                  end, Up),
    State#state{waiting = Waiting};
handle_event({node_down, Name}, State) ->
    ok = chatter_monitors:node_down(Name),
    State;
handle_event({node_named, Former, Name}, State) ->
    ok = chatter_monitors:node_down(Former),
    handle_event({node_up, Name}, State);
handle_event({dial_failed, Id}, State) ->
    case maps:take(Id, State#state.dialled) of
        {Spec, Dialled} -> fail_waiting(Spec, State#state{dialled = Dialled});
        error -> State
    end;
handle_event({lost, Name, Sender, Count}, State) ->
    Flow = case Sender of {0, 0} -> other; _ -> Sender end,
    ok = chatter_broadcast:tell({chatter_lost, peer_node(Name), Flow, Count}),
    State;
handle_event({node_lost, Name}, State) ->
    %% A connected node has lost its last route: before it is given up, a link of our own is tried.
    case links() of
        auto -> _ = chatter_nif:connect({name, Name}, 0, false), State;
        static -> State
    end;
handle_event({name_clash, Name}, State) ->
    logger:error("chatter: two nodes have the name ~ts: the one that came later gets no links. "
                 "Give one of them another name", [Name]),
    State;
handle_event(_, State) ->
    State.

resolved(Id, Seq, Spec, {addresses, []}, State) ->
    ok = chatter_nif:dial(Id, Seq, []),
    fail_waiting(Spec, State);
resolved(Id, Seq, Spec, {addresses, Addresses}, State) ->
    ok = chatter_nif:dial(Id, Seq, Addresses),
    found(Spec, {addresses, Addresses}, State#state{dialled = (State#state.dialled)#{Id => Spec}});
resolved(Id, Seq, Spec, _Crash, State) ->
    resolved(Id, Seq, Spec, {addresses, []}, State).

found(Spec, {addresses, [_ | _] = Addresses}, #state{found = Found} = State) ->
    Kept = if map_size(Found) < ?MAX_FOUND -> Found; true -> #{} end,
    State#state{found = Kept#{Spec => Addresses}};
found(_, _, State) ->
    State.

%% The nodes that were waited for in vain, of late.
missed(#state{missed = Missed}) ->
    Since = erlang:monotonic_time(millisecond) - ?MISSED_MS,
    maps:filter(fun(_, At) -> At > Since end, Missed).

%% Nobody knows the node, or it takes no link from us: who waits for it need not wait longer.
fail_waiting({name, Name}, State) ->
    {Failed, Waiting} = lists:partition(fun({Node, _, _}) -> atom_to_binary(Node) =:= Name end,
                                        State#state.waiting),
    lists:foreach(fun({_, From, Timer}) ->
                          _ = erlang:cancel_timer(Timer),
                          gen_server:reply(From, {error, unreachable})
                  end, Failed),
    State#state{waiting = Waiting};
fail_waiting(_, State) ->
    State.

%% ===== names to addresses; in a process of its own =====

%% @private
-spec find_addresses(native_spec()) -> no_return().
find_addresses(Spec) ->
    exit({addresses, resolve(Spec)}).

%% @private
-spec find_port(string(), string()) -> no_return().
find_port(Name, Host) ->
    exit({found, chatter_port(Name, Host)}).

resolve({address, Host, Port}) ->
    [{Ip, Port} || Ip <- host_addresses(binary_to_list(Host))];
resolve({name, FullName}) ->
    case chatter_nif:found_at(FullName) of
        [] -> ask_registry(FullName);
        Found -> Found
    end.

ask_registry(FullName) ->
    case string:split(binary_to_list(FullName), "@") of
        [Name, Host] ->
            case chatter_port(Name, Host) of
                {ok, Port} -> [{Ip, Port} || Ip <- node_addresses(Name, Host)];
                {error, _} -> []
            end;
        _ -> []
    end.

%% An epmd module may know better than the resolver where the node of a name is.
node_addresses(Name, Host) ->
    Epmd = net_kernel:epmd_module(),
    case Epmd =/= chatter_epmd andalso erlang:function_exported(Epmd, address_please, 3) of
        true ->
            case Epmd:address_please(Name, Host, inet) of
                {ok, Ip} -> [ip_bytes(Ip)];
                {ok, Ip, _Port, _Version} -> [ip_bytes(Ip)];
                {error, _} -> []
            end;
        false -> host_addresses(Host)
    end.

%% @private
-spec discovered(string(), string()) -> {ok, inet:ip_address(), inet:port_number()} | none.
discovered(Name, Host) ->
    case chatter_nif:found_at(unicode:characters_to_binary([Name, $@, Host])) of
        [{<<A, B, C, D>>, Port} | _] -> {ok, {A, B, C, D}, Port};
        [{<<Ip:16/binary, _/binary>>, Port} | _] ->
            {ok, list_to_tuple([Word || <<Word:16>> <= Ip]), Port};
        [] -> none
    end.

host_addresses(Host) ->
    lists:append([case inet:getaddrs(Host, Family) of
                      {ok, Addresses} -> [ip_bytes(A) || A <- Addresses];
                      {error, _} -> []
                  end || Family <- [inet, inet6]]).

ip_bytes({A, B, C, D}) -> <<A, B, C, D>>;
ip_bytes(Address) -> << <<Word:16>> || Word <- tuple_to_list(Address) >>.

%% The port on which a node takes links, from the registry of its host.
chatter_port(Name, Host) ->
    case net_kernel:epmd_module() of
        chatter_epmd ->
            case chatter_epmd:lookup(Name, Host) of
                {ok, #{chatter_port := Port}} -> {ok, Port};
                {ok, _} -> {error, other_carrier};
                {error, _} = Error -> Error
            end;
        Epmd ->
            case Epmd:port_please(Name, Host) of
                {port, Port, _} -> {ok, Port};
                Other -> {error, Other}
            end
    end.

connect_neighbours(#{neighbours := Neighbours}) ->
    lists:foreach(fun(#{spec := Spec, metric := Metric}) ->
                          ok = chatter_nif:connect(native_spec(Spec), native_metric(Metric), true)
                  end, Neighbours).

native_metric(default) -> 0;
native_metric(Metric) -> Metric.

native_spec({name, Node}) -> {name, atom_to_binary(Node)};
native_spec({address, Host, Port}) when is_tuple(Host) ->
    {address, list_to_binary(inet:ntoa(Host)), Port};
native_spec({address, Host, Port}) ->
    {address, unicode:characters_to_binary(Host), Port}.

%% ===== what the native side takes =====

native_config(FullName, Listen, Config) ->
    Keys = [encryption, unix_sockets, hello_ms, hold_ms, unreachable_ms, lsp_refresh_s,
            channel_window, max_frame, max_channels, retransmit_memory, setup_retry_ms,
            gap_timeout_ms, on_loss, control_queue, relay_queue, channel_queue,
            broadcast_window, broadcast_memory, max_broadcast,
            max_half_open, max_links, max_nodes, handshake_timeout_ms,
            reconnect_min_ms, reconnect_max_ms, workers, busy_poll_us, multicast, multicast_port,
            multicast_ttl, multicast_rate, multicast_queue, beacon_ms, discovery_links],
    (maps:with(Keys, Config))#{
        name => unicode:characters_to_binary(FullName),
        flows => maps:get(flows, Config) =:= all,
        flow_quota => native_quota(Config),
        my_addr => native_address(maps:get(my_addr, Config)),
        my_port => native_port(Listen, maps:get(my_port, Config)),
        routes => [{atom_to_binary(To), atom_to_binary(Via)}
                   || {To, Via} <- maps:get(routes, Config)],
        advertise => native_advertise(maps:get(advertise, Config)),
        multicast_addr => ip_bytes(maps:get(multicast_addr, Config)),
        multicast_if => native_interfaces(maps:get(multicast_if, Config)),
        dial_found => maps:get(links, Config) =:= auto,
        key => native_key(maps:get(key, Config))}.

%% Without flows there is nobody to be told apart, and to be held back alone.
native_quota(#{flows := all, flow_backpressure := suspend, flow_quota := Quota}) -> Quota;
native_quota(#{}) -> 1 bsl 62.

native_address(any) -> <<>>;
native_address(Address) -> ip_bytes(Address).

native_port(false, _) -> none;
native_port(true, auto) -> {from, 29999};
native_port(true, Port) -> {fixed, Port}.

native_advertise(auto) -> [];
native_advertise(Hosts) ->
    lists:append([case is_tuple(H) of
                      true -> [ip_bytes(H)];
                      false -> host_addresses(H)
                  end || H <- Hosts]).

native_interfaces(Names) when is_list(Names) ->
    {chosen, [unicode:characters_to_binary(Name) || Name <- Names]};
native_interfaces(Which) -> Which.

native_key(undefined) -> {cookie, atom_to_binary(auth:get_cookie())};
native_key(Key) -> {key, Key}.
