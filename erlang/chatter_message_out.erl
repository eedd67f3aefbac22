%% SPDX-License-Identifier: Apache-2.0
%% @doc Serves one channel for messages to another node: opens it, tells the senders that wait when
%% there is room again, and closes it when it has not been used for `message_idle_ms'. Messages do
%% not pass here: senders put them into the channel themselves.
-module(chatter_message_out).

-export([start_link/1, await_room/3]).

%% Spawned.
-export([init/2]).

-record(state, {
    channel :: chatter_nif:channel(),
    index :: pos_integer(),
    node :: node(),
    idle_ms :: pos_integer(),
    %% Messages sent so far, when that was looked at last.
    sent = 0 :: non_neg_integer(),
    %% Who waits for room.
    waiting = #{} :: #{pid() => {reference(), chatter_nif:flow()}}
}).

%% How long the other node may take to grant the channel, and how often it is asked for one that
%% ends before that: as the distribution does (`net_setuptime').
-define(OPEN_MS, 7000).
-define(OPENS, 3).

%% @doc Starts the process, linked to the caller, which gets `{opened, Pid, Channel}' or an exit.
-spec start_link(node()) -> pid().
start_link(Node) ->
    spawn_opt(?MODULE, init, [self(), Node], [link, {message_queue_data, off_heap}]).

%% @doc Waits until the channel has room for a flow, as far as can be told: others may be faster.
-spec await_room(pid(), chatter_nif:flow(), timeout()) -> ok | timeout | closed.
await_room(Out, Flow, Timeout) ->
    Ref = monitor(process, Out, [{alias, reply_demonitor}]),
    Out ! {wait, self(), {Ref, Flow}},
    receive
        {Ref, room} -> ok;
        {'DOWN', Ref, process, _, _} -> closed
    after Timeout ->
        true = demonitor(Ref, [flush]),
        Out ! {cancel, self()},
        receive {Ref, room} -> ok after 0 -> timeout end
    end.

%% @private
-spec init(pid(), node()) -> no_return().
init(Server, Node) ->
    {Channel, Index} = open(Node, ?OPENS),
    Server ! {opened, self(), Channel},
    Idle = chatter_node:setting(message_idle_ms, 60000),
    look_later(Idle),
    loop(#state{channel = Channel, index = Index, node = Node, idle_ms = Idle}).

open(Node, Opens) ->
    case chatter_route:find(Node) of
        ok -> ask(Node, Opens);
        {error, _} -> exit({shutdown, unreachable})
    end.

%% A node that was just restarted may still be known as its former life: then the first channel
%% comes to nothing, and the tables know better a moment later.
ask(Node, Opens) ->
    case chatter_nif:open(atom_to_binary(Node), messages) of
        {ok, Channel, Index} ->
            ok = chatter_nif:controller(Channel, self()),
            receive
                {chatter, Index, opened} -> {Channel, Index};
                {chatter, Index, {closed, connection_refused}} -> exit({shutdown, unreachable});
                {chatter, Index, {closed, _}} when Opens > 1 -> open(Node, Opens - 1);
                {chatter, Index, {closed, Reason}} -> exit({shutdown, Reason})
            after ?OPEN_MS ->
                exit({shutdown, timeout})
            end;
        {error, no_route} when Opens > 1 ->
            open(Node, Opens - 1);
        {error, Reason} ->
            exit({shutdown, Reason})
    end.

loop(#state{index = Index, waiting = Waiting} = State) ->
    receive
        chatter_writable ->
            loop(wake(State));
        {wait, Pid, For} ->
            loop(wake(State#state{waiting = Waiting#{Pid => For}}));
        {cancel, Pid} ->
            loop(State#state{waiting = maps:remove(Pid, Waiting)});
        {chatter, Index, {closed, Reason}} ->
            exit({shutdown, Reason});
        {timeout, _, look} ->
            look(State)
    end.

%% Those for whom there is room go on; for the others, `chatter_writable' comes again.
wake(#state{channel = Channel, waiting = Waiting} = State) ->
    Waits = fun(_, {Ref, Flow}) ->
                    case chatter_nif:room(Channel, Flow) of
                        ok -> Ref ! {Ref, room}, false;
                        full -> true;
                        closed -> exit({shutdown, closed})
                    end
            end,
    State#state{waiting = maps:filter(Waits, Waiting)}.

look_later(Idle) ->
    _ = erlang:start_timer(Idle, self(), look),
    ok.

%% A channel that nobody has used since the last look is closed, unless an answer is awaited.
look(#state{channel = Channel, sent = Before, idle_ms = Idle} = State) ->
    {_, Sent, _} = chatter_nif:stat(Channel),
    Alive = maps:filter(fun(Pid, _) -> is_process_alive(Pid) end, State#state.waiting),
    case Sent =:= Before andalso map_size(Alive) =:= 0 andalso not is_awaited(State#state.node)
        andalso chatter_nif:close_idle(Channel) of
        true -> exit({shutdown, unused});
        false ->
            look_later(Idle),
            loop(State#state{sent = Sent, waiting = Alive})
    end.

is_awaited(Node) ->
    case chatter_messages:channel(Node) of
        {ok, {_, _, Anchor}} -> process_info(Anchor, monitored_by) =/= {monitored_by, []};
        none -> false
    end.
