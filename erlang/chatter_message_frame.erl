%% SPDX-License-Identifier: Apache-2.0
%% @doc Messages to frames of a channel and back, as docs/wire-format.md has them. No process.
-module(chatter_message_frame).

-export([encode/4, flow/0, sender/1, with_time_left/2, size/1, decode/1]).

-export_type([class/0, frame/0, to/0]).

-type class() :: high | normal | low.
-type to() :: pid() | atom() | reference().

-type manner() :: {class(), Reliable :: boolean(), Ordered :: boolean()}.

-type frame() :: {Flags :: byte(), manner(), Term :: [binary()]}.
%% A frame without the time that is left, which is known when it is sent.

-define(UNRELIABLE, 4).
-define(UNORDERED, 8).
-define(CALL, 16).

%% Flags and time left.
-define(HEADER_LEN, 5).

%% @doc A message `{To, Message}', or a call as {@link chatter_call} makes it.
-spec encode(message | call, tuple(), class(), {Reliable :: boolean(), Ordered :: boolean()}) ->
          frame().
encode(What, Term, Class, {Reliable, Ordered}) ->
    Flags = class_bits(Class)
        bor case Reliable of true -> 0; false -> ?UNRELIABLE end
        bor case Ordered of true -> 0; false -> ?UNORDERED end
        bor case What of message -> 0; call -> ?CALL end,
    {Flags, {Class, Reliable, Ordered}, erlang:term_to_iovec(Term)}.

%% @doc What the calling process sends stays in order, whatever it is sent to: one receiver may be
%% addressed by identifier, name and alias.
-spec flow() -> chatter_nif:flow().
flow() ->
    {Id, Serial} = sender(self()),
    (Id bsl 32) bor Serial.

%% @doc ID and serial of a process of this node.
-spec sender(pid()) -> chatter_governor:sender().
sender(Pid) ->
    Term = term_to_binary(Pid),
    Before = byte_size(Term) - 12,
    <<_:Before/binary, Id:32, Serial:32, _Creation:32>> = Term,
    {Id, Serial}.

%% @doc How the frame is to be carried, and its pieces; `Left' in milliseconds, 0 for no deadline.
-spec with_time_left(frame(), non_neg_integer()) -> {chatter_nif:post_options(), [binary()]}.
with_time_left({Flags, {Class, Reliable, Ordered}, Term}, Left) ->
    {{flow(), Class, Reliable, Ordered, Left},
     [<<Flags:8, (min(Left, 16#ffffffff)):32>> | Term]}.

%% @doc Bytes of the whole frame.
-spec size(frame()) -> pos_integer().
size({_, _, Term}) ->
    ?HEADER_LEN + iolist_size(Term).

%% @doc What a frame holds. Fails with an error if it is none: a receiver on another node, an
%% unknown flag, a term that is compressed (it could claim any size) or malformed.
-spec decode(binary()) ->
          {class(), Left :: non_neg_integer(),
           {message, to(), term()} | {call, chatter_call:call()}}.
decode(<<0:3, Call:1, _:2, Class:2, Left:32, 131, Tag, _/binary>> = Frame) when Tag =/= 80 ->
    <<_:?HEADER_LEN/binary, Term/binary>> = Frame,
    {class(Class), Left, what(Call, binary_to_term(Term))}.

what(0, {To, Message}) when is_atom(To) -> {message, To, Message};
what(0, {To, Message}) when node(To) =:= node() -> {message, To, Message};
what(1, {ReplyTo, M, F, A, Timeout} = Call)
  when is_reference(ReplyTo), is_atom(M), is_atom(F), is_list(A),
       Timeout =:= infinity orelse (is_integer(Timeout) andalso Timeout >= 0
                                    andalso Timeout =< 16#ffffffff) ->
    {call, Call}.

class_bits(normal) -> 0;
class_bits(high) -> 1;
class_bits(low) -> 2.

class(0) -> normal;
class(1) -> high;
class(2) -> low.
