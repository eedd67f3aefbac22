%% What runs on the nodes that the nemesis plays with: plain OTP, nothing here calls Chatter.
%%
%% Processes, none linked to another, so that one that crashes is missed in the report:
%%
%%   chatter_nemesis_receiver  checks what comes from all senders of all other nodes
%%   chatter_nemesis_watcher   keeps what net_kernel:monitor_nodes tells
%%   a sender for each other node; what they have sent stands in a table that a keeper owns
-module(chatter_nemesis_node).

-export([start/1, snapshot/1, stop_senders/0, senders_left/0, report/0, ready/1]).

-export_type([opts/0, report/0]).

%% burst messages to each other node every every_ms; sizes: [{Share, Bytes}] of the payloads.
-type opts() :: #{nodes := [node()], burst := pos_integer(), every_ms := pos_integer(),
                  sizes := [{pos_integer(), non_neg_integer()}]}.

-type report() :: #{sent := [chatter_nemesis_check:sent()],
                    received := #{chatter_nemesis_check:stream() => term()},
                    wrong := chatter_nemesis_check:wrong(), damaged := non_neg_integer(),
                    events := [chatter_nemesis_check:event()],
                    pauses := [{Ms :: pos_integer(), At :: integer(), From :: node()}],
                    count := non_neg_integer()}.

-define(TABLE, chatter_nemesis).
-define(RECEIVER, chatter_nemesis_receiver).
-define(WATCHER, chatter_nemesis_watcher).
%% Pauses of a stream are noted from here on, and so many of the longest.
-define(PAUSE_MS, 300).
-define(PAUSES, 200).
-define(REOPEN_MS, 50).
-define(CALL_MS, 20000).

-record(sender, {to, number = 0, opts, payloads, stopping = false}).
-record(receiver, {notes, last_ms = #{}, pauses = [], payloads, damaged = 0, counter}).

%% Returns when all processes run; the senders begin at once.
-spec start(opts()) -> ok.
start(#{nodes := Nodes} = Opts) ->
    Counter = counters:new(2, []),
    ok = persistent_term:put(?MODULE, Counter),
    Payloads = payloads(maps:get(sizes, Opts)),
    Caller = self(),
    Begin = [fun() ->
                     ?TABLE = ets:new(?TABLE, [named_table, public, {write_concurrency, true}]),
                     Caller ! {self(), ready},
                     receive after infinity -> ok end
             end,
             fun() -> watcher(Caller) end,
             fun() ->
                     process_flag(message_queue_data, off_heap),
                     true = register(?RECEIVER, self()),
                     Caller ! {self(), ready},
                     receiver(#receiver{notes = chatter_nemesis_check:new(), payloads = Payloads,
                                        counter = Counter})
             end],
    [receive {Pid, ready} -> ok end || F <- Begin, Pid <- [spawn(F)]],
    Senders = [spawn(fun() -> open(#sender{to = Node, opts = Opts, payloads = Payloads}) end)
               || Node <- lists:delete(node(), Nodes)],
    true = ets:insert(?TABLE, {senders, Senders}),
    ok.

%% How many messages have come, how many of them out of place, and what the watcher has seen since.
-spec snapshot(integer()) ->
          {non_neg_integer(), non_neg_integer(), [chatter_nemesis_check:event()]}.
snapshot(SinceMs) ->
    Counter = persistent_term:get(?MODULE),
    Events = [E || {_, Ms, _, _, _} = E <- ask(?WATCHER), Ms > SinceMs],
    {counters:get(Counter, 1), counters:get(Counter, 2), Events}.

%% No sender begins another burst; one that is held back goes on until it is not.
-spec stop_senders() -> ok.
stop_senders() ->
    [{senders, Senders}] = ets:lookup(?TABLE, senders),
    _ = [Pid ! stop || Pid <- Senders],
    ok.

-spec senders_left() -> non_neg_integer().
senders_left() ->
    [{senders, Senders}] = ets:lookup(?TABLE, senders),
    length(lists:filter(fun erlang:is_process_alive/1, Senders)).

%% Whether the node has a connection to each of these, both ways up.
-spec ready([node()]) -> true | [node()].
ready(Nodes) ->
    case Nodes -- [node() | nodes()] of
        [] -> true;
        Missing -> Missing
    end.

-spec report() -> report().
report() ->
    {Notes, Damaged, Pauses} = ask(?RECEIVER),
    #{sent => [{{Pid, N}, node(), To, Count, State}
               || {{Pid, N}, To, Count, State} <- ets:tab2list(?TABLE)],
      received => chatter_nemesis_check:streams(Notes),
      wrong => chatter_nemesis_check:wrong(Notes), damaged => Damaged, pauses => Pauses,
      events => ask(?WATCHER),
      count => counters:get(persistent_term:get(?MODULE), 1)}.

ask(Name) ->
    Ref = monitor(process, Name),
    Name ! {report, self(), Ref},
    receive
        {Ref, Answer} -> demonitor(Ref, [flush]), Answer;
        {'DOWN', Ref, process, _, Reason} -> error({Name, Reason})
    after ?CALL_MS -> error({Name, timeout})
    end.

payloads(Sizes) ->
    list_to_tuple(lists:append([lists:duplicate(Share, chatter_work:pattern(Bytes))
                                || {Share, Bytes} <- Sizes])).

payload(N, Payloads) -> element(N rem tuple_size(Payloads) + 1, Payloads).

%%% ------------------------------------------------------------------------------------
%%% Sender

open(#sender{stopping = true}) -> ok;
open(#sender{to = Node, number = Before} = S0) ->
    S = S0#sender{number = Before + 1},
    note(S, 0, opening),
    Ref = monitor(process, {?RECEIVER, Node}),
    {?RECEIVER, Node} ! {hello, self(), Ref},
    await_welcome(S, Ref).

await_welcome(#sender{opts = #{every_ms := Every}} = S, Ref) ->
    receive
        {Ref, _} when S#sender.stopping ->
            note(S, 0, open);
        {Ref, Receiver} ->
            note(S, 0, open),
            %% Senders begin at any time, not all at once.
            receive after rand:uniform(Every) -> ok end,
            write(S, {Ref, Receiver}, 0, now_ms());
        {'DOWN', Ref, process, _, _} ->
            true = ets:delete(?TABLE, {self(), S#sender.number}),
            receive stop -> ok after ?REOPEN_MS -> open(S#sender{number = S#sender.number - 1}) end;
        stop ->
            await_welcome(S#sender{stopping = true}, Ref)
    end.

write(#sender{opts = #{burst := Burst}} = S, {Ref, _} = Receiver, Count, Due) ->
    {Now, Sent} = burst(S, dest(S, Receiver, Count), Count + 1, Count + Burst),
    note(S, Sent, open),
    receive
        {'DOWN', Ref, process, _, Reason} ->
            ended(S, Sent, Reason);
        stop ->
            demonitor(Ref, [flush]),
            ok
    after max(0, Due - Now) ->
            case Sent < Count + Burst of
                true -> await_end(S, Ref, Sent);
                false -> write(S, Receiver, Sent, max(Due, Now - 50) + every(S))
            end
    end.

every(#sender{opts = #{every_ms := Every}}) -> Every.

%% By process identifier and by name in turn: the order is that of the pair of processes.
dest(#sender{to = Node, opts = #{burst := Burst}}, {_, Pid}, Count) ->
    case (Count div Burst) band 1 of 0 -> Pid; 1 -> {?RECEIVER, Node} end.

%% Never connects: a stream ends with its connection.
burst(#sender{number = Number, payloads = Payloads} = S, Dest, N, Last) when N =< Last ->
    case erlang:send(Dest, {self(), Number, N, payload(N, Payloads)}, [noconnect]) of
        ok -> burst(S, Dest, N + 1, Last);
        noconnect -> {now_ms(), N - 1}
    end;
burst(_, _, N, _) ->
    {now_ms(), N - 1}.

%% There is no connection; the monitor says so too.
await_end(S, Ref, Sent) ->
    receive {'DOWN', Ref, process, _, Reason} -> ended(S, Sent, Reason) end.

ended(S, Sent, Reason) ->
    note(S, Sent, {ended, now_ms(), Reason}),
    receive stop -> ok after ?REOPEN_MS -> open(S) end.

note(#sender{to = Node, number = N}, Count, State) ->
    true = ets:insert(?TABLE, {{self(), N}, Node, Count, State}).

%%% ------------------------------------------------------------------------------------
%%% Receiver

receiver(#receiver{notes = Notes, last_ms = LastMs, payloads = Payloads} = R) ->
    receive
        {Pid, Number, N, Payload} ->
            Now = now_ms(),
            counters:add(R#receiver.counter, 1, 1),
            Damaged = case payload(N, Payloads) of Payload -> 0; _ -> 1 end,
            Noted = chatter_nemesis_check:arrive({Pid, Number}, N, Now, Notes),
            counters:put(R#receiver.counter, 2,
                         chatter_nemesis_check:out_of_place(Noted) + Damaged),
            receiver(pause(Pid, Now, R#receiver{notes = Noted, last_ms = LastMs#{Pid => Now},
                                                damaged = R#receiver.damaged + Damaged}, LastMs));
        {hello, Pid, Ref} ->
            Pid ! {Ref, self()},
            receiver(R#receiver{last_ms = maps:remove(Pid, LastMs)});
        {report, From, Ref} ->
            From ! {Ref, {Notes, R#receiver.damaged, R#receiver.pauses}},
            receiver(R)
    end.

pause(Pid, Now, #receiver{pauses = Pauses} = R, LastMs) ->
    case LastMs of
        #{Pid := Last} when Now - Last >= ?PAUSE_MS ->
            Sorted = lists:reverse(lists:sort([{Now - Last, Now, node(Pid)} | Pauses])),
            R#receiver{pauses = lists:sublist(Sorted, ?PAUSES)};
        #{} -> R
    end.

%%% ------------------------------------------------------------------------------------
%%% Watcher

watcher(Caller) ->
    true = register(?WATCHER, self()),
    ok = net_kernel:monitor_nodes(true, [nodedown_reason]),
    Caller ! {self(), ready},
    watcher_loop([]).

watcher_loop(Events) ->
    receive
        {What, Node, Info} when What =:= nodeup; What =:= nodedown ->
            Reason = proplists:get_value(nodedown_reason, Info),
            watcher_loop([{node(), now_ms(), What, Node, Reason} | Events]);
        {report, From, Ref} ->
            From ! {Ref, lists:reverse(Events)},
            watcher_loop(Events)
    end.

%% One clock for all nodes of this machine.
now_ms() -> os:system_time(millisecond).
