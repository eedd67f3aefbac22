%% SPDX-License-Identifier: Apache-2.0
%% @doc The two processes that carry the data of one distribution connection.
%%
%% The controller fetches frames from the VM and puts them into the channel, as many as there are
%% in one call, so that the VM's own queue stays short: a process that sends more than its share is
%% held back by the governor ({@link chatter_governor}). When the channel as a whole is full the
%% controller does not fetch: then the VM's queue fills and its limit (`+zdbbl') suspends all
%% senders. The input process takes frames from the channel, hands
%% each to the VM and grants the credit back. One sends and the other receives, so a full channel
%% in one direction cannot stop the other.
%%
%% Both are linked to each other and, through the controller, to the supervisor of the connection.
%% The exit reason of the controller is what `nodedown' reports; it is never `normal'.
-module(chatter_dist_ctrl).

-export([start_link/1, start_data/3, drain_all/0]).

%% Spawned.
-export([controller/2, input/4]).

%% Frames, and bytes in them, of one call into the channel: enough to be worth a system call, few
%% enough that the call takes far less than a millisecond.
-define(BATCH_FRAMES, 256).
-define(BATCH_BYTES, 131072).

%% How long a controller may take to hand over what the VM has queued when the node stops.
-define(DRAIN_MS, 1000).

%% How long a process of a connection that is over waits to be ended with the right reason.
-define(DEATH_ROW_MS, 5000).

%% So many frames in one call mean that the receivers are busy: they get their turns first.
-define(MANY_FRAMES, 16).

-define(SPAWN_OPTS, [link, {priority, high}, {message_queue_data, off_heap},
                     {min_heap_size, 4096}, {fullsweep_after, 20}]).

%% @doc Starts the controller of a channel, linked to the caller, the connection's supervisor.
-spec start_link(chatter_nif:channel()) -> pid().
start_link(Channel) ->
    spawn_opt(?MODULE, controller, [self(), Channel], ?SPAWN_OPTS).

%% @doc The handshake is over: data may flow. Called by the supervisor.
-spec start_data(pid(), node(), erlang:dist_handle()) -> ok.
start_data(Ctrl, Node, DHandle) ->
    Ref = make_ref(),
    Ctrl ! {start, self(), Ref, Node, DHandle},
    receive {Ref, started} -> ok end.

%% @doc Has all controllers hand over what the VM has queued, before the node stops.
-spec drain_all() -> ok.
drain_all() ->
    Ctrls = [Ctrl || {_Node, Ctrl} <- erlang:system_info(dist_ctrl), is_pid(Ctrl)],
    Refs = [begin
                Ref = erlang:monitor(process, Ctrl),
                Ctrl ! {drain, self(), Ref},
                Ref
            end || Ctrl <- Ctrls],
    Until = erlang:monotonic_time(millisecond) + ?DRAIN_MS,
    lists:foreach(fun(Ref) -> await_drained(Ref, Until) end, Refs).

await_drained(Ref, Until) ->
    Left = max(0, Until - erlang:monotonic_time(millisecond)),
    receive
        {Ref, drained} -> erlang:demonitor(Ref, [flush]);
        {'DOWN', Ref, process, _, _} -> true
    after Left ->
        erlang:demonitor(Ref, [flush])
    end.

%% @private
-spec controller(pid(), chatter_nif:channel()) -> no_return().
controller(Supervisor, Channel) ->
    receive
        {start, Supervisor, Ref, Node, DHandle} ->
            Input = spawn_opt(?MODULE, input, [self(), Node, Channel, DHandle], ?SPAWN_OPTS),
            ok = erlang:dist_ctrl_input_handler(DHandle, Input),
            _ = erlang:dist_ctrl_set_opt(DHandle, get_size, true),
            Input ! {self(), go},
            Governor = chatter_governor:start_link(),
            ok = chatter_nif:governor(Channel, Governor),
            Supervisor ! {Ref, started},
            while_connected(fun() -> fetch(DHandle, {Channel, Governor}) end)
    end.

%% The VM refuses a handle whose connection it has ended. Then the exit signal that says why is on
%% its way, and must not be overtaken by one of our own.
-spec while_connected(fun(() -> Reason)) -> Reason.
while_connected(Loop) ->
    try
        Loop()
    catch
        error:Reason when Reason =:= badarg; Reason =:= notsup ->
            receive after ?DEATH_ROW_MS -> exit(connection_closed) end
    end.

%% Nothing is known to be queued, or more than a batch was.
fetch(DHandle, Channel) ->
    case get_frames(DHandle, 0, 0, []) of
        {_, []} ->
            ok = erlang:dist_ctrl_get_data_notification(DHandle),
            wait(DHandle, Channel);
        {More, Frames} ->
            case send(Channel, Frames) of
                ok when More -> fetch(DHandle, Channel);
                ok ->
                    ok = erlang:dist_ctrl_get_data_notification(DHandle),
                    wait(DHandle, Channel);
                full -> wait_writable(DHandle, Channel);
                closed -> wait_end()
            end
    end.

wait(DHandle, Channel) ->
    receive
        dist_data -> fetch(DHandle, Channel);
        chatter_writable -> wait(DHandle, Channel);
        {send, From, Ref, IoData} -> raw(DHandle, Channel, From, Ref, IoData);
        {drain, From, Ref} ->
            drain(DHandle, Channel),
            From ! {Ref, drained},
            wait(DHandle, Channel)
    end.

%% The channel is full: fetching less is the back-pressure. Raw frames wait in the mailbox.
wait_writable(DHandle, Channel) ->
    receive
        chatter_writable -> fetch(DHandle, Channel);
        {drain, From, Ref} ->
            drain(DHandle, Channel),
            From ! {Ref, drained},
            wait_writable(DHandle, Channel)
    end.

%% The channel is over. The input process hands over what has come before the end, then exits.
-spec wait_end() -> no_return().
wait_end() ->
    receive after ?DEATH_ROW_MS -> exit(connection_closed) end.

%% One raw frame, as OTP's own suites ask of a controller; refused for as long as the channel is
%% full.
raw(DHandle, Channel, From, Ref, IoData) ->
    Status = send(Channel, [[iolist_to_binary(IoData)]]),
    From ! {Ref, ok},
    case Status of
        ok -> wait(DHandle, Channel);
        full -> wait_writable(DHandle, Channel);
        closed -> wait_end()
    end.

%% The node stops: no notification is asked for, and full counts for nothing.
drain(DHandle, Channel) ->
    case get_frames(DHandle, 0, 0, []) of
        {_, []} -> ok;
        {_, Frames} ->
            _ = send(Channel, Frames),
            drain(DHandle, Channel)
    end.

%% Hands frames over, and has those held back who have too much queued.
send({Channel, Governor}, Frames) ->
    case chatter_nif:send(Channel, Frames) of
        {hold, Senders, Status} ->
            ok = chatter_governor:hold(Governor, Senders),
            Status;
        Status ->
            Status
    end.

%% Up to a batch of frames, the newest first, and whether there may be more.
get_frames(_DHandle, Count, Bytes, Frames) when Count >= ?BATCH_FRAMES; Bytes >= ?BATCH_BYTES ->
    {true, Frames};
get_frames(DHandle, Count, Bytes, Frames) ->
    case erlang:dist_ctrl_get_data(DHandle) of
        {Size, Frame} -> get_frames(DHandle, Count + 1, Bytes + Size, [Frame | Frames]);
        none -> {false, Frames}
    end.

%% @private
-spec input(pid(), node(), chatter_nif:channel(), erlang:dist_handle()) -> no_return().
input(Ctrl, Node, Channel, DHandle) ->
    receive {Ctrl, go} -> ok end,
    ok = chatter_nif:input(Channel),
    case while_connected(fun() -> put_next(Channel, DHandle, 0, chatter_awake:new()) end) of
        node_gone ->
            ok = chatter_settle:node_gone(Node),
            %% As if a socket had been closed.
            exit(connection_closed);
        Reason -> exit(Reason)
    end.

%% What has been put is granted with the next fetch, or at once if there is nothing more to fetch.
%% Returns why the channel is over.
%%
%% A single message is handed over before other work. Many would then keep the processes that they
%% are for from ever getting a turn, where there is one scheduler, until their mailboxes have all:
%% so from many on this process is as urgent as these.
put_next(Channel, DHandle, Granted, Before) ->
    {Frames, Cost, State} = chatter_nif:fetch(Channel, Granted),
    {Put, Awake} = put_frames(DHandle, Frames, 0, chatter_awake:start_batch(Before)),
    case State of
        more ->
            give_way(),
            put_next(Channel, DHandle, Cost, Awake);
        idle ->
            if Put >= ?MANY_FRAMES -> give_way();
               true -> process_flag(priority, high)
            end,
            ok = chatter_nif:grant(Channel, Cost),
            receive
                {chatter_ready, _} -> put_next(Channel, DHandle, 0, Awake)
            end;
        Reason -> Reason
    end.

give_way() ->
    _ = process_flag(priority, normal),
    erlang:yield().

put_frames(DHandle, [Frame | Frames], Before, Awake) ->
    ok = erlang:dist_ctrl_put_data(DHandle, Frame),
    Count = Before + 1,
    put_frames(DHandle, Frames, Count, chatter_awake:handed_over(Count, Awake));
put_frames(_DHandle, [], Count, Awake) ->
    {Count, Awake}.
