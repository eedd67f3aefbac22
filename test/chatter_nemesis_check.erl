%% The judge of the nemesis: what receivers note as messages arrive, and the verdict over a whole
%% run. Pure, so that it can be shown to find what is planted (chatter_nemesis_SUITE).
%%
%% A *stream* is what one sender writes to one receiver: messages numbered from 1. It ends when the
%% sender sees the receiver or the connection end; it then begins a new one.
-module(chatter_nemesis_check).

-export([new/0, arrive/4, streams/1, wrong/1, out_of_place/1, exempt/4, downs/2, verdict/1]).

-export_type([notes/0, stream/0, gap/0, wrong/0, window/0, event/0, sent/0, input/0, verdict/0]).

-type stream() :: {pid(), pos_integer()}.

%% Numbers that have not come, and when that was noticed.
-type gap() :: {First :: pos_integer(), Last :: pos_integer(), ms()}.

-type ms() :: integer().

-type wrong() :: #{repeated := non_neg_integer(), reordered := non_neg_integer(),
                   examples := [term()]}.

%% When a node was killed or stopped beyond the hold, until it was whole again.
-type window() :: {node(), killed | stopped, From :: ms(), To :: ms() | still}.

%% What net_kernel:monitor_nodes told the observer.
-type event() :: {Observer :: node(), ms(), nodeup | nodedown, node(), Reason :: term()}.

%% What a sender knows in the end. opening: the receiver has not answered.
-type sent() :: {stream(), From :: node(), To :: node(), Count :: non_neg_integer(),
                 opening | open | {ended, ms(), Reason :: term()}}.

-type input() :: #{sent := [sent()], received := #{stream() => {non_neg_integer(), [gap()]}},
                   wrong := [wrong()], events := [event()], windows := [window()],
                   nodes := [node()], receivers := #{stream() => node()}}.

-type verdict() :: #{lost := non_neg_integer(), repeated := non_neg_integer(),
                     reordered := non_neg_integer(), nodedown := non_neg_integer(),
                     broken := non_neg_integer(), not_once := non_neg_integer(),
                     unopened := non_neg_integer(), examples := [term()]}.

-record(notes, {streams = #{} :: #{stream() => {non_neg_integer(), [gap()]}},
                repeated = 0 :: non_neg_integer(),
                reordered = 0 :: non_neg_integer(),
                gaps = 0 :: non_neg_integer(),
                examples = [] :: [term()]}).

-opaque notes() :: #notes{}.

-define(EXAMPLES, 10).

%%% ------------------------------------------------------------------------------------
%%% At the receiver

-spec new() -> notes().
new() -> #notes{}.

%% Message N of the stream has come.
-spec arrive(stream(), pos_integer(), ms(), notes()) -> notes().
arrive(Stream, N, NowMs, #notes{streams = Streams} = Notes) ->
    case Streams of
        #{Stream := {Last, Gaps}} when N =:= Last + 1 ->
            Notes#notes{streams = Streams#{Stream := {N, Gaps}}};
        #{Stream := {Last, Gaps}} when N > Last ->
            Gap = {Last + 1, N - 1, NowMs},
            example({gap, Stream, Gap},
                    Notes#notes{gaps = Notes#notes.gaps + 1,
                                streams = Streams#{Stream := {N, [Gap | Gaps]}}});
        #{Stream := {Last, Gaps}} ->
            late(Stream, N, {Last, Gaps}, Notes);
        #{} ->
            arrive(Stream, N, NowMs, Notes#notes{streams = Streams#{Stream => {0, []}}})
    end.

late(Stream, N, {Last, Gaps}, #notes{streams = Streams} = Notes) ->
    case [Gap || {From, To, _} = Gap <- Gaps, From =< N, N =< To] of
        [] ->
            example({repeated, Stream, N, Last},
                    Notes#notes{repeated = Notes#notes.repeated + 1});
        [{From, To, Ms} = Gap] ->
            Rest = [{F, T, Ms} || {F, T} <- [{From, N - 1}, {N + 1, To}], F =< T],
            Left = {Last, Rest ++ lists:delete(Gap, Gaps)},
            example({reordered, Stream, N, Last},
                    Notes#notes{reordered = Notes#notes.reordered + 1,
                                streams = Streams#{Stream := Left}})
    end.

example(Example, #notes{examples = Examples} = Notes) when length(Examples) < ?EXAMPLES ->
    Notes#notes{examples = [Example | Examples]};
example(_, Notes) ->
    Notes.

%% The last number of each stream, and what is missing before it.
-spec streams(notes()) -> #{stream() => {non_neg_integer(), [gap()]}}.
streams(#notes{streams = Streams}) -> Streams.

%% How many messages have been repeated, out of order or behind a gap.
-spec out_of_place(notes()) -> non_neg_integer().
out_of_place(#notes{repeated = Repeated, reordered = Reordered, gaps = Gaps}) ->
    Repeated + Reordered + Gaps.

-spec wrong(notes()) -> wrong().
wrong(#notes{repeated = Repeated, reordered = Reordered, examples = Examples}) ->
    #{repeated => Repeated, reordered => Reordered, examples => Examples}.

%%% ------------------------------------------------------------------------------------
%%% Over the whole run

%% Whether one of the two was killed or stopped beyond the hold at that time. `still` is later
%% than any time, as an atom is larger than any number.
-spec exempt(node(), node(), ms(), [window()]) -> boolean().
exempt(A, B, Ms, Windows) ->
    lists:any(fun({Node, _, From, To}) ->
                      (Node =:= A orelse Node =:= B) andalso From =< Ms andalso Ms =< To
              end, Windows).

%% lost       sent and never arrived, though neither end was killed or stopped beyond the hold
%% nodedown   reported between two such nodes
%% broken     streams that ended between two such nodes
%% not_once   a killed node was not reported down exactly once and up exactly once
%% unopened   a receiver that lives has not answered a sender
-spec verdict(input()) -> verdict().
verdict(#{sent := Sent, received := Received, wrong := Wrong, windows := Windows} = Input) ->
    {Lost, Broken, Unopened, Examples} =
        lists:foldl(fun(S, Acc) -> judge(S, Received, Windows, Acc) end, {0, 0, 0, []}, Sent),
    Orphans = orphans(Input),
    Downs = downs(maps:get(events, Input), Windows),
    NotOnce = not_once(Input),
    #{lost => Lost + missing(Orphans),
      repeated => lists:sum([N || #{repeated := N} <- Wrong]),
      reordered => lists:sum([N || #{reordered := N} <- Wrong]),
      nodedown => length(Downs), broken => Broken, not_once => length(NotOnce),
      unopened => Unopened,
      examples => lists:append([lists:sublist(L, ?EXAMPLES)
                                || L <- [Downs, NotOnce, Examples, Orphans,
                                         lists:append([E || #{examples := E} <- Wrong])]])}.

judge({Stream, From, To, Count, State}, Received, Windows, {Lost, Broken, Unopened, Examples}) ->
    {Last, Gaps} = maps:get(Stream, Received, {0, []}),
    Counting = [Gap || {_, _, Ms} = Gap <- Gaps, not exempt(From, To, Ms, Windows)],
    Example = {stream, Stream, From, To, {sent, Count}, {last, Last}, {gaps, Counting}, State},
    case State of
        opening ->
            {Lost, Broken, Unopened + 1, [Example | Examples]};
        open ->
            case Count - Last + missing(Counting) of
                0 -> {Lost, Broken, Unopened, Examples};
                Missing -> {Lost + Missing, Broken, Unopened, [Example | Examples]}
            end;
        {ended, Ms, _} ->
            case exempt(From, To, Ms, Windows) of
                true when Counting =:= [] -> {Lost, Broken, Unopened, Examples};
                true -> {Lost + missing(Counting), Broken, Unopened, [Example | Examples]};
                false -> {Lost + Count - Last + missing(Counting), Broken + 1, Unopened,
                          [Example | Examples]}
            end
    end.

missing(Gaps) -> lists:sum([To - From + 1 || {From, To, _} <- Gaps]).

%% Gaps in streams whose sender was killed, so that its own account is gone.
orphans(#{sent := Sent, received := Received, receivers := Receivers, windows := Windows}) ->
    Known = maps:from_list([{Stream, true} || {Stream, _, _, _, _} <- Sent]),
    [Gap || {{Pid, _} = Stream, {_, Gaps}} <- lists:sort(maps:to_list(Received)),
            not is_map_key(Stream, Known), {_, _, Ms} = Gap <- Gaps,
            not exempt(node(Pid), maps:get(Stream, Receivers), Ms, Windows)].

%% The events that should not be.
-spec downs([event()], [window()]) -> [event()].
downs(Events, Windows) ->
    [E || {Observer, Ms, nodedown, Node, _} = E <- Events,
          not exempt(Observer, Node, Ms, Windows)].

not_once(#{events := Events, windows := Windows, nodes := Nodes}) ->
    [{not_once, Node, {seen_by, Observer}, Seen}
     || {Node, killed, From, To} <- Windows, Observer <- lists:delete(Node, Nodes),
        not lists:any(fun({N, _, F, T}) -> N =:= Observer andalso F =< To andalso From =< T end,
                      Windows),
        Seen <- [[What || {O, Ms, What, N, _} <- Events, O =:= Observer, N =:= Node,
                          From =< Ms, Ms =< To]],
        Seen =/= [nodedown, nodeup]].
