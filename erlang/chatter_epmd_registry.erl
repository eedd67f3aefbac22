%% SPDX-License-Identifier: Apache-2.0
%%
%% The host registry: an epmd. Idle until told to serve a port.
%%
%%     chatter_epmd_sup
%%      ├── chatter_epmd_agent ── serve ──►┐  is told when the registry was killed by request
%%      └── chatter_epmd_registry ◄────────┘  owns the listening sockets and the names
%%            ├── chatter_epmd_conn           one for each listening socket, accepting
%%            └── chatter_epmd_conn ...       one for each connection; linked
%%
%% A connection that dies takes its name along. If the registry dies all connections do, every
%% node on the host sees its own close, and one of them serves next: see chatter_epmd_agent.
%%
%% At a limit: beyond `max_pending' connections that have not registered the oldest is closed,
%% those of other hosts first; so are some when there are no file descriptors left. Beyond
%% `max_names' registrations are refused. A connection that takes longer than `request_ms' over
%% its request is closed.
-module(chatter_epmd_registry).
-behaviour(gen_server).

-export([start_link/1, serve/2, stop_serving/1, request/4, info/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-define(BACKLOG, 1024).
%% Most bytes taken from a socket at once; a request fits.
-define(BUFFER_BYTES, 4096).
%% How long a peer may take to read its answer before it is dropped.
-define(SEND_TIMEOUT_MS, 5000).
%% How many connections make room when an accept finds no file descriptor.
-define(EVICT_AT_ONCE, 16).
%% As in epmd.
-define(MAX_LISTEN_SOCKETS, 16).

-type counters() :: #{accepted | rejected | evicted | accept_failed => non_neg_integer()}.
-record(state, {options :: undefined | chatter_epmd_config:options(),
                owner :: undefined | pid(),
                listeners = [] :: [gen_tcp:socket()],
                acceptors = #{} :: #{pid() => gen_tcp:socket()},
                %% Connections that have not registered: age, and whether from this host.
                pending = #{} :: #{pid() => {integer(), boolean()}},
                names :: undefined | chatter_epmd_names:table(),
                counters = #{} :: counters()}).

-type answer() :: {answer, iodata(), close | linger | keep | kill} | {refuse, atom()}.

%% @doc Start an idle registry.
-spec start_link(anonymous | {local, atom()}) -> {ok, pid()} | {error, term()}.
start_link(anonymous) -> gen_server:start_link(?MODULE, [], []);
start_link(Name) -> gen_server:start_link(Name, ?MODULE, [], []).

%% @doc Bind and serve. The caller gets `{chatter_epmd_registry, Pid, killed}' when a KILL_REQ
%% has ended it. `eaddrinuse' is the sign that somebody else serves.
-spec serve(gen_server:server_ref(), chatter_epmd_config:options()) -> ok | {error, term()}.
serve(Registry, Options) -> gen_server:call(Registry, {serve, Options}, infinity).

%% @doc Close everything and be idle again.
-spec stop_serving(gen_server:server_ref()) -> ok.
stop_serving(Registry) -> gen_server:call(Registry, stop_serving, infinity).

%% @doc For a connection: decide on its request. `Fd' is what DUMP will show for it.
-spec request(pid(), chatter_epmd_wire:request(), boolean(), integer()) -> answer().
request(Registry, Request, Local, Fd) ->
    gen_server:call(Registry, {request, Request, Local, Fd}, infinity).

%% @doc Live figures.
-spec info(gen_server:server_ref()) -> #{serving := boolean(), _ => _}.
info(Registry) -> gen_server:call(Registry, info, infinity).

%%% gen_server ---------------------------------------------------------------------------

%% @private
-spec init([]) -> {ok, #state{}}.
init([]) ->
    process_flag(trap_exit, true),
    {ok, #state{}}.

%% @private
-spec handle_call(term(), gen_server:from(), #state{}) -> {reply, term(), #state{}}.
handle_call({request, Request, Local, Fd}, {Pid, _}, #state{names = Names} = State)
  when Names =/= undefined ->
    {Answer, State1} = decide(Request, Local, {Pid, Fd}, State),
    log(State1, "~0p from ~p: ~0p", [Request, Pid, Answer]),
    {reply, Answer, State1};
handle_call({request, _, _, _}, _From, State) ->
    {reply, {refuse, not_serving}, State};
handle_call({serve, Options}, {Owner, _}, #state{listeners = []} = State) ->
    case listen(Options) of
        {ok, Listeners} -> {reply, ok, start_serving(Options, Owner, Listeners, State)};
        {error, _} = Error -> {reply, Error, State}
    end;
handle_call({serve, _}, _From, State) ->
    {reply, {error, already_serving}, State};
handle_call(stop_serving, _From, State) ->
    {reply, ok, shut(State)};
handle_call(info, _From, State) ->
    {reply, figures(State), State}.

%% @private
-spec handle_cast(term(), #state{}) -> {noreply, #state{}}.
handle_cast(_, State) -> {noreply, State}.

%% @private
-spec handle_info(term(), #state{}) -> {noreply, #state{}} | {stop, term(), #state{}}.
handle_info({accepted, Pid, Listen, Local}, #state{acceptors = Acceptors} = State)
  when is_map_key(Pid, Acceptors) ->
    State1 = count(accepted, State#state{acceptors = maps:remove(Pid, Acceptors)}),
    {noreply, evict(start_acceptor(Listen, add_pending(Pid, Local, State1)))};
handle_info({accept_failed, _Pid, Reason}, State) ->
    log(State, "accept failed: ~p", [Reason]),
    {noreply, evict_oldest(?EVICT_AT_ONCE, count(accept_failed, State))};
handle_info({rejected, Pid, Reason}, State) ->
    log(State, "rejected ~p: ~p", [Pid, Reason]),
    {noreply, count(rejected, State)};
handle_info({killed, _Pid}, #state{owner = Owner} = State) when is_pid(Owner) ->
    Owner ! {chatter_epmd_registry, self(), killed},
    {noreply, shut(State)};
handle_info({'EXIT', Pid, Reason}, #state{acceptors = Acceptors} = State)
  when is_map_key(Pid, Acceptors) ->
    {stop, {acceptor, Reason}, State};
handle_info({'EXIT', Pid, _}, #state{pending = Pending, names = Names} = State)
  when Names =/= undefined ->
    {noreply, State#state{pending = maps:remove(Pid, Pending),
                          names = chatter_epmd_names:unregister(Pid, Names)}};
handle_info(_, State) ->
    {noreply, State}.

%% @private
-spec terminate(term(), #state{}) -> ok.
terminate(_Reason, State) ->
    _ = shut(State),
    ok.

%%% Requests -----------------------------------------------------------------------------

decide({alive2, Entry}, true, Owner, State) -> alive2(Entry, Owner, State);
decide({port2, Name}, _, _, #state{names = Names} = State) ->
    answer(chatter_epmd_wire:port2_response(chatter_epmd_names:find(Name, Names)), close, State);
decide(names, _, _, #state{names = Names} = State) ->
    answer(chatter_epmd_wire:names_response(port(State), chatter_epmd_names:names(Names)),
           close, State);
decide(dump, true, _, #state{names = Names} = State) ->
    {Active, Old} = chatter_epmd_names:dump(Names),
    answer(chatter_epmd_wire:dump_response(port(State), Active, Old), close, State);
decide(kill, true, _, #state{names = Names} = State) ->
    case relaxed(State) orelse chatter_epmd_names:count(Names) =:= 0 of
        true -> answer(<<"OK">>, kill, State);
        false -> answer(<<"NO">>, close, State)
    end;
decide({stop, Name}, true, _, State) ->
    case relaxed(State) of
        true -> stop_name(Name, State);
        false -> refuse(not_relaxed, State)
    end;
decide(_, false, _, State) -> refuse(not_local, State).

alive2(#{high := High} = Entry, {Pid, _} = Owner, #state{names = Names} = State) ->
    case chatter_epmd_names:register(Entry, Owner, random_creation(), Names) of
        {ok, Creation, Names1} ->
            answer(chatter_epmd_wire:alive2_response(High, Creation), keep,
                   State#state{names = Names1, pending = maps:remove(Pid, State#state.pending)});
        {error, Reason} ->
            log(State, "registration refused: ~p", [Reason]),
            answer(chatter_epmd_wire:alive2_refusal(High), linger, State)
    end.

%% epmd says STOPPED after NOEXIST too; clients read seven bytes.
stop_name(Name, #state{names = Names} = State) ->
    case chatter_epmd_names:stop(Name, Names) of
        {ok, Pid, Names1} ->
            exit(Pid, shutdown),
            answer(<<"STOPPED">>, close, State#state{names = Names1});
        error -> answer(<<"NOEXISTSTOPPED">>, close, State)
    end.

answer(Data, Then, State) -> {{answer, Data, Then}, State}.

%% The connection reports it as rejected, like a request that it could not read.
refuse(Reason, State) -> {{refuse, Reason}, State}.

random_creation() -> 3 + rand:uniform(16#ffffffff - 3).

port(#state{options = #{port := Port}}) -> Port.

relaxed(#state{options = #{relaxed := Relaxed}}) -> Relaxed.

%%% Connections --------------------------------------------------------------------------

start_serving(#{max_names := MaxNames, max_old_names := MaxOld} = Options, Owner, Listeners,
              State) ->
    Serving = State#state{options = Options, owner = Owner, listeners = Listeners,
                          names = chatter_epmd_names:new(MaxNames, MaxOld), counters = #{}},
    lists:foldl(fun start_acceptor/2, Serving, Listeners).

start_acceptor(Listen, #state{acceptors = Acceptors, options = #{request_ms := Ms}} = State) ->
    {ok, Pid} = chatter_epmd_conn:start_link(self(), Listen, Ms),
    State#state{acceptors = Acceptors#{Pid => Listen}}.

add_pending(Pid, Local, #state{pending = Pending} = State) ->
    State#state{pending = Pending#{Pid => {erlang:unique_integer([monotonic]), Local}}}.

evict(#state{pending = Pending, options = #{max_pending := Max}} = State) ->
    evict_oldest(max(0, map_size(Pending) - Max), State).

%% `false' sorts before `true': other hosts first, then by age.
evict_oldest(0, State) -> State;
evict_oldest(N, #state{pending = Pending} = State) ->
    Sorted = lists:sort([{Local, Age, Pid} || {Pid, {Age, Local}} <- maps:to_list(Pending)]),
    lists:foldl(fun evict_one/2, State, lists:sublist(Sorted, N)).

evict_one({_, _, Pid}, #state{pending = Pending} = State) ->
    exit(Pid, shutdown),
    count(evicted, State#state{pending = maps:remove(Pid, Pending)}).

count(Counter, #state{counters = Counters} = State) ->
    State#state{counters = maps:update_with(Counter, fun(N) -> N + 1 end, 1, Counters)}.

figures(#state{names = undefined}) -> #{serving => false};
figures(#state{names = Names, pending = Pending, counters = Counters} = State) ->
    Counters#{serving => true, port => port(State),
              names => chatter_epmd_names:count(Names), pending => map_size(Pending)}.

%% Closes all; the connections are killed so that their owners see it at once.
shut(#state{listeners = Listeners, counters = Counters} = State) ->
    lists:foreach(fun(Pid) -> unlink(Pid), exit(Pid, kill) end, connections(State)),
    lists:foreach(fun gen_tcp:close/1, Listeners),
    #state{counters = Counters}.

connections(#state{names = undefined}) -> [];
connections(#state{names = Names, acceptors = Acceptors, pending = Pending}) ->
    maps:keys(Acceptors) ++ maps:keys(Pending) ++ chatter_epmd_names:owners(Names).

%%% Listening ----------------------------------------------------------------------------

%% The first socket is IPv4 and decides who serves. Without addresses IPv6 is a bonus; with
%% addresses the loopback ones are added, and those that were asked for must be had.
listen(#{port := Port, addresses := Text}) ->
    case addresses(string:lexemes(Text, ", "), []) of
        {ok, []} -> listen_all([{{0, 0, 0, 0}, decisive}, {ipv6(0), optional}], Port, []);
        {ok, Given} when length(Given) > ?MAX_LISTEN_SOCKETS - 2 -> {error, too_many_addresses};
        {ok, Given} ->
            Loopback = [{{127, 0, 0, 1}, decisive}, {ipv6(1), optional}],
            More = [{A, wanted} || A <- Given, not lists:keymember(A, 1, Loopback)],
            listen_all(Loopback ++ More, Port, []);
        {error, _} = Error -> Error
    end.

ipv6(Last) -> {0, 0, 0, 0, 0, 0, 0, Last}.

addresses([], Acc) -> {ok, lists:usort(Acc)};
addresses([Text | Rest], Acc) ->
    case inet:parse_strict_address(Text) of
        {ok, Address} -> addresses(Rest, [Address | Acc]);
        {error, _} -> {error, {bad_address, Text}}
    end.

listen_all([], _Port, []) -> {error, eaddrnotavail};
listen_all([], _Port, Sockets) -> {ok, Sockets};
listen_all([{Address, Need} | Rest], Port, Sockets) ->
    case gen_tcp:listen(Port, listen_options(Address)) of
        {ok, Socket} -> listen_all(Rest, Port, [Socket | Sockets]);
        {error, Reason} ->
            case may_lack(Need, Reason) of
                true -> listen_all(Rest, Port, Sockets);
                false ->
                    lists:foreach(fun gen_tcp:close/1, Sockets),
                    {error, Reason}
            end
    end.

may_lack(optional, _) -> true;
may_lack(decisive, Reason) -> lists:member(Reason, [eafnosupport, eaddrnotavail, eprotonosupport]);
may_lack(wanted, _) -> false.

listen_options(Address) ->
    Family = case tuple_size(Address) of
                 4 -> [inet];
                 8 -> [inet6, {ipv6_v6only, true}]
             end,
    %% Elsewhere reuseaddr means "after a former server"; on Windows, "beside another one".
    Reuse = case os:type() of
                {win32, _} -> [];
                _ -> [{reuseaddr, true}]
            end,
    Family ++ Reuse ++ [binary, {ip, Address}, {active, false}, {packet, raw}, {nodelay, true},
                        {backlog, ?BACKLOG}, {buffer, ?BUFFER_BYTES},
                        {send_timeout, ?SEND_TIMEOUT_MS}, {send_timeout_close, true}].

log(#state{options = #{debug := true, port := Port}}, Format, Args) ->
    io:format(standard_error, "epmd ~b: " ++ Format ++ "~n", [Port | Args]);
log(_, _, _) -> ok.
