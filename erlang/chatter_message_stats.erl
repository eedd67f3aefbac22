%% SPDX-License-Identifier: Apache-2.0
%% @doc Counters of messages without a connection. No process; they count from the first start of
%% distribution in this VM.
-module(chatter_message_stats).

-export([new/0, count/1, info/0]).
-export([enter_call/1, leave_call/0]).

-type counter() :: {sent | received, chatter_message_frame:class()}
                 | late | full | unreachable | too_large | unreadable | calls.

-define(KEY, {chatter, message_counters}).
-define(COUNTERS, 13).
-define(RUNNING, 12).

%% @doc Makes the counters, if there are none.
-spec new() -> ok.
new() ->
    case persistent_term:get(?KEY, none) of
        none -> persistent_term:put(?KEY, counters:new(?COUNTERS, [write_concurrency]));
        _ -> ok
    end.

%% @doc Counts one more.
-spec count(counter()) -> ok.
count(What) ->
    add(index(What), 1).

%% @doc One more call is served here, if they are fewer than that many.
-spec enter_call(pos_integer()) -> boolean().
enter_call(Limit) ->
    case counters:get(persistent_term:get(?KEY), ?RUNNING) < Limit of
        true -> add(?RUNNING, 1), count(calls), true;
        false -> false
    end.

%% @doc A call is over.
-spec leave_call() -> ok.
leave_call() ->
    add(?RUNNING, -1).

%% @doc All figures.
-spec info() -> map().
info() ->
    case persistent_term:get(?KEY, none) of
        none -> #{};
        Counters ->
            Get = fun(What) -> counters:get(Counters, index(What)) end,
            Classes = fun(What) ->
                              maps:from_list([{C, Get({What, C})} || C <- [high, normal, low]])
                      end,
            maps:from_list([{sent, Classes(sent)}, {received, Classes(received)},
                            {calls_running, counters:get(Counters, ?RUNNING)}
                            | [{What, Get(What)} || What <- [late, full, unreachable, too_large,
                                                             unreadable, calls]]])
    end.

add(Index, By) ->
    case persistent_term:get(?KEY, none) of
        %% Distribution has never run.
        none -> ok;
        Counters -> counters:add(Counters, Index, By)
    end.

index({sent, high}) -> 1;
index({sent, normal}) -> 2;
index({sent, low}) -> 3;
index({received, high}) -> 4;
index({received, normal}) -> 5;
index({received, low}) -> 6;
index(late) -> 7;
index(full) -> 8;
index(unreachable) -> 9;
index(too_large) -> 10;
index(unreadable) -> 11;
index(calls) -> 13.
