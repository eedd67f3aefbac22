%% SPDX-License-Identifier: Apache-2.0
%% @doc The sender's side of messages without a connection: everything runs in the calling process.
-module(chatter_send).

-export([send/3, manner/1, post/4, post_to/3]).

-export_type([option/0, error/0, times/0]).

-type option() :: unordered | unreliable | {priority, chatter_message_frame:class()}
                | {deadline, pos_integer()}.

-type error() :: {error, unreachable | full | too_large}.

-type times() :: {Until :: integer() | infinity, GiveUp :: integer() | infinity,
                  Waits :: boolean()}.
%% When nobody wants a frame any more, and when its sender does not wait any longer, in monotonic
%% milliseconds; whether it waits for room. `late' if the former is why it waits no more.

-record(options, {
    class = normal :: chatter_message_frame:class(),
    reliable = true :: boolean(),
    ordered = true :: boolean(),
    deadline = infinity :: pos_integer() | infinity
}).

%% @doc See `chatter:send/3'.
-spec send(pid() | {atom(), node()}, term(), [option()]) -> ok | error().
send(Dest, Message, Opts) ->
    Options = options(Opts, #options{}),
    case destination(Dest) of
        {To, Node} when Node =:= node() ->
            _ = case is_atom(To) of
                    true -> {To, Node} ! Message;
                    false -> To ! Message
                end,
            ok;
        {To, Node} ->
            #options{class = Class, reliable = Reliable, ordered = Ordered} = Options,
            Frame = chatter_message_frame:encode(message, {To, Message}, Class,
                                                 {Reliable, Ordered}),
            Result = send_frame(Node, Frame, Options),
            ok = chatter_message_stats:count(counted(Result, Class)),
            reason(Result)
    end.

destination(Pid) when is_pid(Pid) -> {Pid, node(Pid)};
destination({Name, Node}) when is_atom(Name), is_atom(Node) -> {Name, Node};
destination(_) -> error(badarg).

options([unordered | Opts], O) -> options(Opts, O#options{ordered = false});
options([unreliable | Opts], O) -> options(Opts, O#options{reliable = false});
options([{priority, Class} | Opts], O) when Class =:= high; Class =:= normal; Class =:= low ->
    options(Opts, O#options{class = Class});
options([{deadline, Ms} | Opts], O) when is_integer(Ms), Ms > 0, Ms =< 16#ffffffff ->
    options(Opts, O#options{deadline = Ms});
options([], O) -> O;
options(_, _) -> error(badarg).

%% @doc What the options say for all that a process sends; `plain' if nothing.
-spec manner([option()]) -> chatter_nif:post_options() | plain.
manner(Opts) ->
    case options(Opts, #options{}) of
        #options{} = Options when Options =:= #options{} -> plain;
        #options{class = Class, reliable = Reliable, ordered = Ordered, deadline = Deadline} ->
            {0, Class, Reliable, Ordered, case Deadline of infinity -> 0; Ms -> Ms end}
    end.

%% Nobody wants an unreliable message so much that its sender would wait for room.
send_frame(Node, Frame, #options{deadline = Deadline, reliable = Reliable}) ->
    Now = now_ms(),
    Until = case Deadline of
                infinity -> infinity;
                Ms -> Now + Ms
            end,
    Wait = chatter_node:setting(message_wait_ms, 0),
    GiveUp = min(Until, Now + Wait),
    post(Node, Frame, {Until, GiveUp, Reliable}, chatter_messages:channel(Node)).

counted(ok, Class) -> {sent, Class};
counted({error, Reason}, _) -> Reason;
counted({late, _}, _) -> late.

reason({late, Reason}) -> {error, Reason};
reason(Result) -> Result.

%% @doc Puts a frame into the channel to a node; opens one if need be.
-spec post(node(), chatter_message_frame:frame(), times(),
           {ok, chatter_messages:out()} | none | {stale, pid()}) ->
          ok | error() | {late, unreachable | full}.
post(Node, Frame, Times, {ok, {_, Out, _} = Open}) ->
    case post_to(Open, Frame, Times) of
        closed -> post(Node, Frame, Times, {stale, Out});
        Result -> Result
    end;
post(Node, Frame, {_, GiveUp, _} = Times, None) ->
    Stale = case None of none -> none; {stale, Out} -> Out end,
    case chatter_messages:open(Node, Stale, time(GiveUp)) of
        {ok, _} = Open -> post(Node, Frame, Times, Open);
        {error, Reason} -> late(Times, Reason)
    end.

%% @doc Puts a frame into this channel and no other.
-spec post_to(chatter_messages:out(), chatter_message_frame:frame(), times()) ->
          ok | closed | error() | {late, full}.
post_to({Channel, Out, _} = Open, Frame, {Until, GiveUp, Waits} = Times) ->
    case chatter_message_frame:size(Frame) =< chatter_node:setting(max_message, 0) of
        false -> {error, too_large};
        true ->
            {Options, Pieces} = chatter_message_frame:with_time_left(Frame, left(Until)),
            case chatter_nif:post(Channel, Options, Pieces) of
                full when Waits ->
                    case chatter_message_out:await_room(Out, element(1, Options), time(GiveUp)) of
                        ok -> post_to(Open, Frame, Times);
                        closed -> closed;
                        timeout -> late(Times, full)
                    end;
                full -> {error, full};
                Result -> Result
            end
    end.

late({Until, GiveUp, _}, Reason) ->
    case is_integer(Until) andalso Until =:= GiveUp andalso now_ms() >= Until of
        true -> {late, Reason};
        false -> {error, Reason}
    end.

left(infinity) -> 0;
left(Until) -> max(1, Until - now_ms()).

time(infinity) -> infinity;
time(GiveUp) -> max(0, GiveUp - now_ms()).

now_ms() ->
    erlang:monotonic_time(millisecond).
