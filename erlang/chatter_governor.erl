%% SPDX-License-Identifier: Apache-2.0
%% @doc Holds back the processes that fill a channel, and nobody else.
%%
%% The VM suspends everybody who sends over a connection that is busy. Here the culprit alone is
%% suspended: the process whose flow has more than `flow_quota' bytes queued, until it has less than
%% half of it. This is what the VM does to senders of a busy connection, by the same means, only for
%% one process: a suspension is asynchronous, belongs to this process, and the VM undoes it when
%% this process dies, which it does with its channel. So nothing can stay suspended.
%%
%% Not held back are processes that OTP itself cannot do without, and those that have asked for
%% asynchronous distribution (`process_flag(async_dist, true)', OTP 25.3 and later): the promise not
%% to be suspended is theirs. For them the bound of the channel remains.
-module(chatter_governor).

-export([start_link/0, hold/2, pid/1]).

%% Spawned.
-export([init/0, ask/2]).

-export_type([sender/0]).

%% A local process by the ID and the serial of its identifier.
-type sender() :: {Id :: non_neg_integer(), Serial :: non_neg_integer()}.

%% Processes of OTP that others wait for, by name.
-define(SPARED, [init, erl_prim_loader, erl_signal_server, erts_code_purger, code_server,
                 application_controller, kernel_sup, kernel_safe_sup, kernel_refc, net_sup,
                 net_kernel, auth, erl_epmd, global_name_server, global_group,
                 global_group_check, pg, rex, file_server_2, inet_db, logger, logger_std_h_default,
                 logger_sup, logger_proxy, error_logger, user, standard_error, standard_error_sup,
                 socket_registry, timer_server, chatter_dist_sup, chatter_node]).

%% How often a sender was to be held back, less how often it could go on. The two come from
%% different threads and may overtake each other; held back is who is above 0.
-type balance() :: {integer(), pid() | none}.

-record(state, {
    %% All whose balance is not 0, and who of them is suspended.
    held = #{} :: #{sender() => balance()},
    %% Who must not be suspended, as far as asked.
    spared = #{} :: #{pid() => boolean()}
}).

%% So many processes are remembered as asked.
-define(MAX_ASKED, 10000).

%% @doc Starts the governor of a channel, linked to the caller, its controller.
-spec start_link() -> pid().
start_link() ->
    spawn_opt(?MODULE, init, [], [link, {priority, high}]).

%% @doc These senders have too much queued. Returns when they have been told to stop: whoever
%% fetched on before that would fetch all that they send meanwhile, which in a millisecond is many
%% megabytes of large messages. They go on when the native side says so with
%% `{chatter_resume, [sender()]}'.
-spec hold(pid(), [sender()]) -> ok.
hold(Governor, Senders) ->
    Ref = make_ref(),
    Governor ! {hold, self(), Ref, Senders},
    receive {Ref, held} -> ok end.

%% @private
-spec init() -> no_return().
init() ->
    loop(#state{}).

loop(State) ->
    receive
        {hold, From, Ref, Senders} ->
            Held = lists:foldl(fun hold_one/2, State, Senders),
            From ! {Ref, held},
            loop(Held);
        {chatter_resume, Senders} -> loop(lists:foldl(fun resume_one/2, State, Senders));
        {async_dist, Sender, Pid, Async} -> loop(asked(Sender, Pid, Async, State))
    end.

hold_one(Sender, #state{held = Held} = State) ->
    case maps:get(Sender, Held, {0, none}) of
        {0, none} -> suspend(Sender, State);
        {-1, none} -> State#state{held = maps:remove(Sender, Held)};
        {N, Pid} -> State#state{held = Held#{Sender => {N + 1, Pid}}}
    end.

resume_one(Sender, #state{held = Held} = State) ->
    case maps:get(Sender, Held, {0, none}) of
        {1, Pid} ->
            resume(Pid),
            State#state{held = maps:remove(Sender, Held)};
        {N, Pid} ->
            State#state{held = Held#{Sender => {N - 1, Pid}}}
    end.

suspend(Sender, #state{held = Held} = State) ->
    Pid = pid(Sender),
    case is_spared(Pid, State) orelse not suspend(Pid) of
        true -> State#state{held = Held#{Sender => {1, none}}};
        false -> ask_once(Sender, Pid, State#state{held = Held#{Sender => {1, Pid}}})
    end.

%% A process that is dying, or gone, needs no holding back.
suspend(Pid) ->
    try
        erlang:suspend_process(Pid, [asynchronous, unless_suspending])
    catch
        error:_ -> false
    end.

resume(none) -> true;
resume(Pid) ->
    try erlang:resume_process(Pid) catch error:_ -> true end.

is_spared(Pid, #state{spared = Spared}) ->
    case Spared of
        #{Pid := true} -> true;
        #{} -> lists:any(fun(Name) -> whereis(Name) =:= Pid end, ?SPARED)
    end.

%% The question is answered by the process itself, which may take its time.
ask_once(Sender, Pid, #state{spared = Spared} = State) when not is_map_key(Pid, Spared) ->
    Known = case map_size(Spared) >= ?MAX_ASKED of true -> #{}; false -> Spared end,
    _ = spawn(?MODULE, ask, [self(), {Sender, Pid}]),
    State#state{spared = Known#{Pid => false}};
ask_once(_Sender, _Pid, State) ->
    State.

%% @private
-spec ask(pid(), {sender(), pid()}) -> term().
ask(Governor, {Sender, Pid}) ->
    %% Unknown to older releases.
    Async = try erlang:process_info(Pid, async_dist) catch error:badarg -> undefined end,
    Governor ! {async_dist, Sender, Pid, Async =:= {async_dist, true}}.

asked(Sender, Pid, true, #state{held = Held, spared = Spared} = State) ->
    Rest = case Held of
               #{Sender := {N, Pid}} -> resume(Pid), Held#{Sender := {N, none}};
               #{} -> Held
           end,
    State#state{held = Rest, spared = Spared#{Pid => true}};
asked(_Sender, _Pid, false, State) ->
    State.

%% @doc The local process of that ID and serial (NEW_PID_EXT of the external term format).
-spec pid(sender()) -> pid().
pid({Id, Serial}) ->
    Node = atom_to_binary(node()),
    Creation = erlang:system_info(creation),
    binary_to_term(<<131, 88, 119, (byte_size(Node)), Node/binary, Id:32, Serial:32,
                     Creation:32>>).
