%% What must hold of groups whatever happens, for PropEr. chatter_group_props_SUITE runs all of it
%% in `make test', main/0 more of it in `make soak'. The seed is printed, and CHATTER_SEED gives it:
%%
%%   CHATTER_SEED=4711 make soak-groups HISTORIES=2000
-module(chatter_group_props).

-export([main/0, check/2, seed/0, properties/0]).
-export([prop_merge/0, prop_histories/0, prop_wire/0, prop_hostile/0, prop_nested/0,
         prop_coverage/0, prop_choose/0]).

%% Debian's package has no header.
-define(FORALL(X, Type, Prop), proper:forall(Type, fun(X) -> Prop end)).
-define(LET(X, Type, Body), proper_types:bind(Type, fun(X) -> Body end, false)).
-define(WHENFAIL(Action, Prop), proper:whenfail(fun() -> Action end, fun() -> Prop end)).

-import(proper_types, [integer/2, list/1, elements/1, oneof/1, frequency/1, boolean/0,
                       exactly/1, resize/2]).

-define(WHOLE, 16#ffffffff).
%% All is equal when nothing has happened for so long.
-define(QUIET_MS, 5000).

%% `make soak': all properties, the histories most often.
-spec main() -> no_return().
main() ->
    Seed = seed(),
    Histories = count("CHATTER_HISTORIES", 100000),
    io:format("seed ~b, ~b histories~n", [Seed, Histories]),
    Failed = [Name || {Name, Count} <- properties(),
                      not check(Name, {case Name of
                                           prop_histories -> Histories;
                                           _ -> 10 * Count
                                       end, Seed})],
    io:format("failed: ~p~n", [Failed]),
    halt(length(Failed)).

%% Each property, and how often `make test' tries it.
properties() ->
    [{prop_merge, 2000}, {prop_wire, 2000}, {prop_hostile, 5000}, {prop_nested, 1000},
     {prop_coverage, 1000}, {prop_choose, 1000}, {prop_histories, 2000}].

%% Whether a property holds in so many tries from this seed.
check(Name, {Count, Seed}) ->
    io:format("~s: ~b tries from seed ~b~n", [Name, Count, Seed]),
    %% PropEr goes on with the generator of the process if there is one.
    _ = rand:seed(exsplus, {Seed, 2, 3}),
    true =:= proper:quickcheck(?MODULE:Name(), [{numtests, Count}, {max_size, 40}, quiet])
        orelse begin
                   io:format("~s fails from seed ~b with~n~p~n",
                             [Name, Seed, proper:counterexample()]),
                   false
               end.

seed() -> count("CHATTER_SEED", erlang:phash2(os:timestamp())).

count(Variable, Default) ->
    case os:getenv(Variable) of
        Text when is_list(Text), Text =/= "" -> list_to_integer(Text);
        _ -> Default
    end.

%%% The rules of merging: in any order, in any grouping, any number of times; on ties too

prop_merge() ->
    ?FORALL({A, B, C}, {lives(), lives(), lives()},
            begin
                {SA, SB, SC} = {told([A]), told([B]), told([C])},
                AB = told([A, B]),
                told([B, A]) =:= AB andalso
                    told([A, A]) =:= SA andalso
                    told([AB, C]) =:= told([A, told([B, C])]) andalso
                    told([AB, A, B]) =:= AB andalso
                    told([SC, SB, SA]) =:= told([A, B, C]) andalso
                    consistent(merged([A, B, C]))
            end).

merged(Tellings) ->
    lists:foldl(fun(Lives, State) -> element(1, chatter_group_state:merge(Lives, State)) end,
                chatter_group_state:new(), Tellings).

%% All that is known after somebody was told these, one after the other, as it could be told again.
told(Tellings) -> dump(merged(Tellings)).

dump(State) ->
    [begin
         {Inc, NetId} = chatter_group_state:life(Id, State),
         {Id, Inc, NetId,
          [{Group, lists:sort(maps:to_list(chatter_group_state:entries(Id, Group, State)))}
           || Group <- lists:sort(chatter_group_state:groups_of(Id, State))]}
     end || Id <- lists:sort(chatter_group_state:ids(State))].

%% What is kept for speed is what it would be if it were made anew.
consistent(State) ->
    All = fun(_, _) -> true end,
    Live = [{Id, Group, Key, Entry}
            || {Id, _, _, Groups} <- dump(State), {Group, Entries} <- Groups,
               {Key, {_, _, {live, _}} = Entry} <- Entries],
    lists:sort(chatter_group_state:groups(State)) =:= lists:usort([G || {_, G, _, _} <- Live])
        andalso lists:all(
                  fun(Id) ->
                          chatter_group_state:hash(Id, State)
                              =:= chatter_group_state:hash(Id, All, State)
                              andalso chatter_group_state:interests(Id, State)
                              =:= [{G, Ranges} || {I, G, get, {_, _, {live, {_, Ranges}}}} <- Live,
                                                  I =:= Id, is_list(Ranges)]
                  end, chatter_group_state:ids(State))
        andalso lists:sort([Sub || {Sub, _} <- chatter_group_state:subs(State)])
        =:= lists:sort([{G, Child, Id} || {Id, G, {sub, Child}, _} <- Live]).

%% Few names and small numbers, so that they meet.
lives() -> resize(6, list(life())).

life() ->
    {elements([<<"a@h">>, <<"b@h">>, <<"c@h">>]), integer(1, 3),
     elements([none, {net_id, {10, 0, 0, 1}, 1}, {net_id, {0, 0, 0, 0, 0, 0, 0, 1}, 65535}]),
     ?LET(Groups, resize(3, list({group(), resize(5, list(entry()))})), unique(Groups))}.

%% A life has a group once, and that an entry once.
unique(Groups) ->
    [{G, lists:ukeysort(1, Entries)} || {G, Entries} <- lists:ukeysort(1, Groups)].

group() -> elements([<<"g">>, <<"h">>, <<"i">>]).

entry() ->
    Alive = elements([live, dead]),
    V = integer(0, 5),
    Clock = integer(0, 2),
    oneof([{exactly(get), {V, Clock, {Alive, {boolean(), interest()}}}},
           {elements([{add, 0, 9}, {add, 5, ?WHOLE}]), {V, Clock, {Alive, integer(0, 2)}}},
           {{exactly(sub), group()}, {V, Clock, {Alive, exactly(none)}}}]).

interest() -> elements([all, [], [{0, 3}], [{0, 3}, {5, 9}]]).

%%% Whatever happens, in the end all see what was said

prop_histories() ->
    ?FORALL({Nodes, Seed, Steps}, {integer(3, 8), integer(1, 1 bsl 30), list(step())},
            begin
                Ids = [<<"n", ($0 + I), "@h">> || I <- lists:seq(1, Nodes)],
                Options = #{collect_ms => 8000, leave_ms => 1000},
                World0 = chatter_group_world:new(Ids, Seed, Options),
                World1 = chatter_group_world:lose({100, 100}, World0),
                no_crash(fun() ->
                                 World2 = lists:foldl(fun(Step, W) -> step(Step, Ids, W) end,
                                                      World1, Steps),
                                 Healed = chatter_group_world:heal(World2),
                                 quiet(chatter_group_world:lose({0, 0}, Healed))
                         end)
            end).

%% PropEr of Debian 12 asks for stacktraces as OTP 25 does not know them any more.
no_crash(Run) ->
    try Run()
    catch Class:Reason:Stack ->
            ?WHENFAIL(io:format("~p: ~p~n~p~n", [Class, Reason, Stack]), false)
    end.

quiet(World) ->
    case chatter_group_world:settle(250, ?QUIET_MS, World) of
        {never, Apart} -> failed("not equal", Apart);
        {_, Equal} -> again(chatter_group_world:run(12000, Equal))
    end.

%% What was said long ago does not come back when it is heard again.
again(World) ->
    Size = fits(World),
    case chatter_group_world:settle(250, ?QUIET_MS, chatter_group_world:run(
                                                 30, chatter_group_world:replay(50, World))) of
        _ when not Size -> failed("too large", World);
        {never, Apart} -> failed("not equal after old messages", Apart);
        {_, Equal} -> left(Equal)
    end.

%% See docs/groups.md: what is known takes up no more than this in memory, once the dead entries
%% have been collected.
fits(World) ->
    lists:all(fun({Bytes, Nodes, Live}) -> Bytes =< 1000 + 400 * (Nodes + Live) end,
              chatter_group_world:footprint(World)).

left(World) ->
    Gone = lists:foldl(fun({Id, Command}, W) ->
                               element(2, chatter_group_world:command(Id, Command, W))
                       end, World,
                       [{Id, Command}
                        || Id <- chatter_group_world:ids(World), Group <- [<<"g">>, <<"h">>],
                           Command <- [{leave, Group, node}, {interest, Group, all}]]),
    Later = chatter_group_world:run(20000, Gone),
    case {chatter_group_world:model(Later), chatter_group_world:equal(Later),
          chatter_group_world:is_empty(Later)} of
        {Model, true, true} when map_size(Model) =:= 0 -> true;
        Other -> failed(io_lib:format("not empty: ~p", [Other]), Later)
    end.

failed(What, World) ->
    ?WHENFAIL(io:format("~ts at ~b ms:~n~p~n", [What, chatter_group_world:now(World),
                                               chatter_group_world:differences(World)]), false).

step() ->
    I = integer(1, 8),
    G = elements([<<"g">>, <<"h">>]),
    From = elements([0, 10, 20]),
    To = elements([20, 30, ?WHOLE]),
    frequency(
      [{4, {exactly(join), I, G}}, {2, {exactly(leave), I, G}},
       {6, {exactly(add), I, G, {From, To, integer(0, 3)}}},
       {4, {exactly(remove), I, G, integer(1, 5)}},
       {1, {exactly(interest), I, G, oneof([exactly(all), interest()])}},
       {2, {exactly(restart), I, frequency([{3, exactly(1)}, {1, exactly(0)}])}},
       {2, {exactly(partition), integer(0, 255)}}, {2, exactly(heal)},
       {2, {exactly(replay), integer(1, 10)}},
       {6, {exactly(run), frequency([{5, integer(1, 50)}, {2, integer(50, 2000)},
                                     {1, integer(2000, 9000)}])}}]).

step({join, I, G}, Ids, World) -> command(I, Ids, {join, G, node}, World);
step({leave, I, G}, Ids, World) -> command(I, Ids, {leave, G, node}, World);
step({add, I, G, {From, To, Port}}, Ids, World) ->
    command(I, Ids, {add_item, G, From, To, Port}, World);
step({remove, I, G, N}, Ids, World) ->
    Id = nth(I, Ids),
    View = chatter_group_core:view(chatter_group_world:core(Id, World)),
    Serving = lists:sort(chatter_group_view:serving(G, View)),
    case [Item || {Of, _, _} = Item <- Serving, Of =:= Id] of
        [] -> World;
        Items ->
            {Id, {From, To}, Port} = nth(N, Items),
            command(I, Ids, {remove_item, G, From, To, Port}, World)
    end;
step({interest, I, G, Ranges}, Ids, World) -> command(I, Ids, {interest, G, Ranges}, World);
step({restart, I, Step}, Ids, World) -> chatter_group_world:restart(nth(I, Ids), Step, World);
step({partition, Bits}, Ids, World) ->
    Sides = lists:zip(Ids, [(Bits bsr N) band 1 || N <- lists:seq(1, length(Ids))]),
    chatter_group_world:partition(maps:from_list(Sides), World);
step(heal, _, World) -> chatter_group_world:heal(World);
step({replay, Count}, _, World) -> chatter_group_world:replay(Count, World);
step({run, Ms}, _, World) -> chatter_group_world:run(Ms, World).

command(I, Ids, Command, World) ->
    element(2, chatter_group_world:command(nth(I, Ids), Command, World)).

nth(N, List) -> lists:nth((N - 1) rem length(List) + 1, List).

%%% Bytes

prop_wire() ->
    ?FORALL(Message, message(),
            {ok, Message} =:= chatter_group_wire:decode(chatter_group_wire:encode(Message))).

%% Of bytes that somebody has changed nothing comes but a message or a refusal, and no message has
%% two forms.
prop_hostile() ->
    ?FORALL({Message, Changes}, {message(), list({integer(0, 400), integer(0, 255)})},
            begin
                Bytes = lists:foldl(fun change/2, chatter_group_wire:encode(Message), Changes),
                case chatter_group_wire:decode(Bytes) of
                    {ok, Other} -> Bytes =:= chatter_group_wire:encode(Other);
                    {error, Reason} -> lists:member(Reason, [malformed, version])
                end
            end).

%% Another byte, or cut there.
change({At, Byte}, Bytes) when At >= byte_size(Bytes) -> <<Bytes/binary, Byte>>;
change({At, 0}, Bytes) -> binary:part(Bytes, 0, At);
change({At, Byte}, Bytes) ->
    <<Before:At/binary, _, After/binary>> = Bytes,
    <<Before/binary, Byte, After/binary>>.

message() ->
    Id = elements([<<"a@h">>, binary:copy(<<"x">>, 255)]),
    Interests = resize(3, list({group(), elements([[], [{0, 3}], [{1, 1}, {3, ?WHOLE}]])})),
    Number = oneof([integer(0, 300), integer(0, 1 bsl 64 - 1)]),
    Hash = integer(0, 1 bsl 56 - 1),
    oneof([{exactly(lives), Id, Interests, lives(), resize(3, list(Id)), boolean()},
           {exactly(digest), Id, Interests, Hash, Hash,
            ?LET(Byte, integer(0, 255), binary:copy(<<Byte>>, 128))},
           {exactly(nodes), Id, Interests, Number, resize(5, list({Id, Number, Hash}))}]).

%%% Groups in groups

%% Whatever was said, nothing contains itself; the order of hearing does not matter; and what is
%% ignored would have closed a cycle with what is not.
prop_nested() ->
    Name = elements([<<"a">>, <<"b">>, <<"c">>, <<"d">>, <<"e">>]),
    ?FORALL(Drawn, list({{Name, Name, elements([<<"x">>, <<"y">>])},
                         {integer(1, 3), integer(1, 9)}}),
            begin
                Said = lists:ukeysort(1, Drawn),
                Edges = chatter_group_nested:edges(Said),
                Edges =:= chatter_group_nested:edges(lists:reverse(Said))
                    andalso not lists:any(
                                  fun({Parent, Children}) ->
                                          lists:any(
                                            fun(C) -> reaches(C, Parent, Edges, 6) end,
                                            Children)
                                  end, maps:to_list(Edges))
                    andalso lists:all(
                              fun({{Parent, Child, _}, _}) ->
                                      lists:member(Child, maps:get(Parent, Edges, []))
                                          orelse reaches(Child, Parent, Edges, 6)
                              end, Said)
            end).

reaches(Same, Same, _, _) -> true;
reaches(_, _, _, 0) -> false;
reaches(From, To, Edges, Depth) ->
    lists:any(fun(Next) -> reaches(Next, To, Edges, Depth - 1) end, maps:get(From, Edges, [])).

%%% Ranges

%% Asked key by key, where something may change and beside it.
prop_coverage() ->
    ?FORALL({Drawn, Served}, {list(range()), list(range())},
            begin
                Within = chatter_group_ranges:normal(Drawn),
                #{keys := Keys, gaps := Gaps, overlaps := Overlaps} =
                    chatter_group_ranges:coverage(Within, Served),
                Size = fun(Ranges) -> lists:sum([To - From + 1 || {From, To} <- Ranges]) end,
                Keys + Size(Gaps) =:= Size(Within)
                    andalso lists:all(
                              fun(Key) ->
                                      Inside = has(Key, Within),
                                      Count = length([R || R <- Served, has(Key, [R])]),
                                      has(Key, Drawn) =:= Inside
                                          andalso has(Key, Gaps) =:= (Inside andalso Count =:= 0)
                                          andalso [Count || Inside, Count > 1]
                                          =:= [C || {From, To, C} <- Overlaps,
                                                    has(Key, [{From, To}])]
                              end, keys(Drawn ++ Served))
            end).

%% No more than the capacity, nothing twice, and nothing that somebody serves while there is a gap.
prop_choose() ->
    ?FORALL({Served, Capacity, Start},
            {list(range()), oneof([integer(1, 50), integer(1, 1 bsl 33)]), key()},
            begin
                Whole = [chatter_group_ranges:whole()],
                Segments = chatter_group_ranges:segments(Whole, Served),
                Chosen = chatter_group_ranges:choose(Segments, Capacity, Start),
                #{gaps := Gaps} = chatter_group_ranges:coverage(Whole, Served),
                Size = fun(Ranges) -> lists:sum([To - From + 1 || {From, To} <- Ranges]) end,
                InGaps = Size(lists:append([chatter_group_ranges:inside(R, Gaps) || R <- Chosen])),
                Chosen =:= chatter_group_ranges:normal(Chosen)
                    andalso Size(Chosen) =:= min(Capacity, 1 bsl 32)
                    andalso InGaps =:= min(Capacity, Size(Gaps))
            end).

range() -> ?LET({A, B}, {key(), key()}, {min(A, B), max(A, B)}).

key() -> oneof([integer(0, 20), integer(?WHOLE - 20, ?WHOLE), integer(0, ?WHOLE)]).

keys(Ranges) ->
    lists:usort([Key || {From, To} <- Ranges, Key <- [From - 1, From, From + 1, To - 1, To, To + 1],
                        Key >= 0, Key =< ?WHOLE]).

has(Key, Ranges) -> lists:any(fun({From, To}) -> From =< Key andalso Key =< To end, Ranges).
