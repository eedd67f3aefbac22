%% SPDX-License-Identifier: Apache-2.0
%% @doc Keeps another scheduler awake while many small frames are handed over and processors are
%% scarce.
%%
%% A process that gets a frame is mostly one of another scheduler. If that sleeps, it is woken,
%% handles the one message and sleeps again. While it has a processor of its own this costs little.
%% If both schedulers have one between them, the one that is woken takes it at once, since it has
%% used less of it: the kernel then changes from one to the other for each message, at 20
%% microseconds each, twenty times what the message takes. A process that yields a few times keeps
%% that scheduler from sleeping for a moment; then the kernel gives each of them its time slice, and
%% hundreds of messages pass in one.
%%
%% That processors are scarce is seen by the time that frames take. While they are not, nothing is
%% done; the process is started when they are for the first time.
-module(chatter_awake).

-export([new/0, start_batch/1, handed_over/2]).

%% For tests.
-export([look/2]).

%% Spawned.
-export([stay/0]).

-export_type([awake/0]).

%% Frames from one look at the clock to the next.
-define(STRETCH, 32).

%% A frame takes up to 1 microsecond. If a stretch took ten times that, processors are scarce.
-define(SLOW_US, 10 * ?STRETCH).

%% How long that is believed, in microseconds.
-define(SCARCE_US, 100000).

%% How often the process yields.
-define(YIELDS, 8).

-record(awake, {
    pid :: pid() | undefined,
    %% When the frames of this stretch began, if that is known.
    began :: integer() | undefined,
    %% Until when processors count as scarce.
    until :: integer() | undefined
}).

%% What is known; a value of the process that hands over frames.
-opaque awake() :: #awake{}.

%% @doc Nothing is known yet.
-spec new() -> awake().
new() -> #awake{}.

%% @doc Frames will be handed over, without a pause.
-spec start_batch(awake()) -> awake().
start_batch(#awake{began = undefined} = Awake) -> Awake;
start_batch(Awake) -> Awake#awake{began = undefined}.

%% @doc So many frames of this batch have been handed over. Called after each of them. The process
%% that it may start is linked to the caller.
-spec handed_over(pos_integer(), awake()) -> awake().
handed_over(Count, Awake) when Count rem ?STRETCH =:= 0 ->
    look(erlang:monotonic_time(microsecond), Awake);
handed_over(_Count, Awake) ->
    Awake.

%% @private
-spec look(integer(), awake()) -> awake().
look(Now, #awake{began = Began, until = Until} = Awake) ->
    if
        is_integer(Began), Now - Began > ?SLOW_US ->
            nudge(Awake#awake{began = Now, until = Now + ?SCARCE_US});
        is_integer(Until), Now < Until ->
            nudge(Awake#awake{began = Now});
        true ->
            Awake#awake{began = Now}
    end.

nudge(#awake{pid = undefined} = Awake) ->
    nudge(Awake#awake{pid = spawn_link(?MODULE, stay, [])});
nudge(#awake{pid = Pid} = Awake) ->
    Pid ! stay,
    Awake.

%% @private
-spec stay() -> no_return().
stay() ->
    receive _ -> flush() end,
    yield(?YIELDS),
    stay().

flush() ->
    receive _ -> flush() after 0 -> ok end.

yield(0) ->
    ok;
yield(N) ->
    _ = erlang:yield(),
    yield(N - 1).
