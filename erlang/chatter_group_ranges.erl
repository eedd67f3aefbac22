%% SPDX-License-Identifier: Apache-2.0
%% @doc Ranges of the 32-bit key space: what is covered, by how many, and which to serve next. A
%% range is `{First, Last}', both included. No process.
-module(chatter_group_ranges).

-export([whole/0, normal/1, valid/2, meets/2, inside/2, segments/2, coverage/2, choose/3]).

-export_type([range/0, coverage/0]).

-type key() :: 0..16#ffffffff.
-type range() :: {key(), key()}.
-type coverage() :: #{keys := non_neg_integer(), gaps := [range()],
                      overlaps := [{key(), key(), pos_integer()}]}.
%% How many keys somebody serves; the ranges that nobody serves; those that more than one does,
%% with how many they are.

-define(LAST, 16#ffffffff).
-define(SPACE, 16#100000000).

%% @doc All keys.
-spec whole() -> range().
whole() -> {0, ?LAST}.

%% @doc Whether this is a range.
-spec valid(term(), term()) -> boolean().
valid(From, To) ->
    is_integer(From) andalso is_integer(To) andalso 0 =< From andalso From =< To
        andalso To =< ?LAST.

%% @doc The same keys as sorted ranges that neither overlap nor touch.
-spec normal([range()]) -> [range()].
normal(Ranges) ->
    lists:reverse(lists:foldl(fun join/2, [], lists:sort(Ranges))).

join({From, To}, [{First, Last} | Done]) when From =< Last + 1 -> [{First, max(Last, To)} | Done];
join(Range, Done) -> [Range | Done].

%% @doc Whether two ranges have a key in common.
-spec meets(range(), range()) -> boolean().
meets({From, To}, {First, Last}) -> From =< Last andalso First =< To.

%% @doc The parts of a range that lie in these.
-spec inside(range(), [range()]) -> [range()].
inside({From, To}, Ranges) ->
    [{max(From, First), min(To, Last)} || {First, Last} <- Ranges,
                                          meets({From, To}, {First, Last})].

%% @doc These ranges, which are normal, cut where the number of those that serve changes: each part
%% with that number. `Served' are the ranges that are served, one for each who does.
-spec segments([range()], [range()]) -> [{key(), key(), non_neg_integer()}].
segments(Within, Served) ->
    lists:append([cut(Range, Served) || Range <- Within]).

cut({From, To} = Range, Served) ->
    Steps = lists:append([[{First, 1}, {Last + 1, -1}]
                          || Part <- Served, {First, Last} <- inside(Range, [Part])]),
    cut(From, To, 0, lists:sort(Steps), []).

cut(From, To, Count, [{From, Step} | Steps], Done) ->
    cut(From, To, Count + Step, Steps, Done);
cut(From, To, Count, [{At, _} | _] = Steps, Done) when At =< To ->
    cut(At, To, Count, Steps, add(From, At - 1, Count, Done));
cut(From, To, Count, _, Done) ->
    lists:reverse(add(From, To, Count, Done)).

%% Where one range ends and the next begins nothing changes.
add(From, To, Count, [{First, Last, Count} | Done]) when Last + 1 =:= From ->
    [{First, To, Count} | Done];
add(From, To, Count, Done) -> [{From, To, Count} | Done].

%% @doc What is covered of these ranges, which are normal.
-spec coverage([range()], [range()]) -> coverage().
coverage(Within, Served) ->
    Segments = segments(Within, Served),
    #{keys => lists:sum([To - From + 1 || {From, To, Count} <- Segments, Count > 0]),
      gaps => [{From, To} || {From, To, 0} <- Segments],
      overlaps => [Segment || {_, _, Count} = Segment <- Segments, Count > 1]}.

%% @doc Proposes what somebody who can serve `Capacity' keys should add: first what nobody serves,
%% then what one does, and so on, from the key `Start' upwards and round. Nodes with different
%% starts that choose at the same time choose different gaps, as far as there are any.
-spec choose([{key(), key(), non_neg_integer()}], pos_integer(), key()) -> [range()].
choose(Segments, Capacity, Start) ->
    Counts = lists:usort([Count || {_, _, Count} <- Segments]),
    normal(take(Counts, Segments, min(Capacity, ?SPACE), Start, [])).

take([Count | Counts], Segments, Left, Start, Taken) when Left > 0 ->
    Parts = [{From, To} || {From, To, C} <- Segments, C =:= Count],
    Ring = lists:append([inside(P, [{Start, ?LAST}]) || P <- Parts])
        ++ lists:append([inside(P, [{0, Start - 1}]) || P <- Parts, Start > 0]),
    {Left1, Taken1} = lists:foldl(fun fill/2, {Left, Taken}, Ring),
    take(Counts, Segments, Left1, Start, Taken1);
take(_, _, _, _, Taken) -> Taken.

fill(_, {0, Taken}) -> {0, Taken};
fill({From, To}, {Left, Taken}) ->
    Keys = min(Left, To - From + 1),
    {Left - Keys, [{From, From + Keys - 1} | Taken]}.
