%% SPDX-License-Identifier: Apache-2.0
%% @doc Takes the messages of one channel that another node has opened, and hands each to its
%% receiver. It runs on a scheduler and grants the credit of a batch after it has handed it over, so
%% a node that is slow holds back those that write to it, and nobody else.
%%
%% What cannot be read is counted and dropped, and logged once for a channel.
-module(chatter_message_in).

-export([start_link/2]).

%% Spawned.
-export([init/2]).

-record(state, {
    channel :: chatter_nif:channel(),
    %% When the batch was fetched: what has waited here for too long is not wanted any more.
    now = 0 :: integer(),
    complained = false :: boolean()
}).

%% What a batch may leave on the heap before it is collected, in bytes of its frames.
-define(GARBAGE_BYTES, 1048576).

%% @doc Starts the process, linked to the caller. It begins when `Former', which takes the messages
%% of the channel before, has ended.
-spec start_link(chatter_nif:channel(), Former :: pid() | none) -> pid().
start_link(Channel, Former) ->
    spawn_opt(?MODULE, init, [Channel, Former],
              [link, {message_queue_data, off_heap}, {fullsweep_after, 20}]).

%% @private
-spec init(chatter_nif:channel(), pid() | none) -> no_return().
init(Channel, Former) ->
    ok = chatter_nif:controller(Channel, self()),
    ok = await_end(Former),
    ok = chatter_nif:input(Channel),
    fetch(0, #state{channel = Channel}).

await_end(none) -> ok;
await_end(Former) ->
    Ref = monitor(process, Former),
    receive {'DOWN', Ref, process, _, _} -> ok end.

fetch(Granted, #state{channel = Channel} = State0) ->
    {Frames, Cost, More} = chatter_nif:fetch(Channel, Granted),
    State = lists:foldl(fun take/2, State0#state{now = now_ms()}, Frames),
    case More of
        more ->
            fetch(Cost, State);
        idle ->
            ok = chatter_nif:grant(Channel, Cost),
            _ = Cost >= ?GARBAGE_BYTES andalso garbage_collect(),
            receive {chatter_ready, _} -> fetch(0, State) end;
        Reason ->
            exit({shutdown, Reason})
    end.

take(Frame, State) ->
    try chatter_message_frame:decode(Frame) of
        {Class, Left, What} ->
            chatter_message_stats:count({received, Class}),
            case Left > 0 andalso now_ms() - State#state.now > Left of
                false -> deliver(What);
                true -> chatter_message_stats:count(late)
            end,
            State
    catch
        error:_ -> unreadable(State)
    end.

%% As with `!', a receiver that does not exist is none of the sender's business.
deliver({message, To, Message}) when is_atom(To) ->
    try To ! Message catch error:badarg -> true end;
deliver({message, To, Message}) ->
    To ! Message;
deliver({call, Call}) ->
    chatter_call:serve(Call).

unreadable(#state{complained = Complained} = State) ->
    chatter_message_stats:count(unreadable),
    _ = Complained orelse
        logger:error("chatter: a message that cannot be read was dropped (decode failure); "
                     "further ones of this channel are only counted", #{domain => [chatter]}),
    State#state{complained = true}.

now_ms() ->
    erlang:monotonic_time(millisecond).
